"""``quire chat``: a conversation in the terminal. Also works with input from a pipe, one turn per line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from quire.cli.flags import add_engine_flags, add_sampling_flags, engine_args, sampling_args
from quire.reference.control.errors import QuireError

HELP = """\
/system TEXT   set the system prompt and start anew (without TEXT: remove it)
/reset         forget the conversation, keep the system prompt
/help          this text
/exit          leave (as do end of input, Ctrl-D, and Ctrl-C at the prompt); Ctrl-C in an answer ends the answer"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", help="system prompt")
    add_sampling_flags(parser, leave_out=["n"])  # one answer a turn
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    from quire import LLM
    from quire.cli.settings import default_params

    interactive = sys.stdin.isatty()
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - makes input() a line editor with history
    with LLM(**engine_args(arguments)) as llm:
        params = default_params(llm, sampling_args(arguments))
        system: str | None = arguments.system
        turns: list[dict[str, Any]] = []
        if interactive:
            print(f"{llm.config.model}: say something, or /help")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                break
            command, _, rest = line.partition(" ")
            if not line:
                continue
            if command == "/exit":
                break
            if command == "/help":
                print(HELP)
            elif command == "/reset":
                turns = []
            elif command == "/system":
                system, turns = rest.strip() or None, []
            elif command.startswith("/"):
                print(f"{command} is no command; /help lists them")
            else:
                turns.append({"role": "user", "content": line})
                answer = _answer(llm, [{"role": "system", "content": system}] * bool(system) + turns, params)
                if answer is None:
                    turns.pop()
                else:
                    turns.append({"role": "assistant", "content": answer})
    if interactive:
        print()
    return 0


def _answer(llm: Any, messages: list[dict[str, Any]], params: Any) -> str | None:
    """Stream an answer to the terminal. None if the question was refused (too long, say): the talk goes on."""
    answer = ""
    try:
        with contextlib.closing(llm.stream(llm.render_chat(messages), params)) as stream:
            for output in stream:
                text = output.outputs[0].text
                answer += text
                print(text, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        if error.field == "prompt_token_ids" and len(messages) > 2:
            print("The conversation fills the model's context; /reset starts anew.", file=sys.stderr)
        return None
    print()
    return answer
