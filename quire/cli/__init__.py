"""The ``quire`` command. One file per subcommand; each has ``configure(parser)`` and ``run(arguments) -> exit status``.

Nothing heavy is imported before a subcommand runs, so ``quire --help`` is immediate.
"""

from __future__ import annotations

import argparse
import re
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from quire import __version__
from quire.reference.control.errors import QuireError

COMMANDS = {
    "demo": "watch the engine work on eight prompts at once",
    "generate": "complete prompts",
    "chat": "talk with a model in the terminal",
    "serve": "serve a model to any OpenAI client over HTTP",
    "ui": "open the playground: a page to chat with a server and to watch its engine",
    "bench": "measure offline throughput and latency",
    "info": "what a model is, and how much of it fits this machine",
}


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"quire: {message}. See {self.prog} --help\n")

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Complain of arguments that nobody knows, and say what the first of them may have been meant to be."""
        flags = re.findall(r"--[\w-]+", self.format_help())
        meant = get_close_matches(unknown[0].partition("=")[0], flags, 1)
        self.error(f"unknown argument {' '.join(unknown)}" + (f" (did you mean {meant[0]}?)" if meant else ""))


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. 0 = done, 1 = failed, 2 = used wrongly (with one line that says how), 130 = interrupted."""
    parser = Parser(prog="quire", description="An LLM inference engine that can be read end to end.")
    parser.add_argument("--version", action="version", version=f"quire {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        module = import_module(f"quire.cli.{name}")
        module.configure(command)
        command.set_defaults(run=module.run)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices[arguments.command].refuse(unknown)
    try:
        return arguments.run(arguments)
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away, as in `quire generate … | head -1`
        sys.stderr.close()
        return 0
