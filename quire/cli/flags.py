"""Command-line flags made from the fields of ``EngineConfig``, ``ServerConfig`` and ``SamplingParams``: one place says
what exists.

The help texts are the lines of those classes' docstrings.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from quire.cli.settings import MAX_TOKENS
from quire.reference.config import EngineConfig
from quire.reference.control.params import SamplingParams
from quire.server.config import ServerConfig

# What a command line can say in one word. The rest is for Python and the server.
SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_tokens", "n", "ignore_eos",
)  # fmt: skip


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """``--model`` and a flag for every other engine argument."""
    group = parser.add_argument_group("engine")
    _add_flags(group, EngineConfig, [f.name for f in fields(EngineConfig)], "engine_")


def engine_args(arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine arguments that were given, for ``LLM(**...)``."""
    return _given(arguments, "engine_")


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every server argument."""
    group = parser.add_argument_group("server")
    _add_flags(group, ServerConfig, [f.name for f in fields(ServerConfig)], "server_")


def server_args(arguments: argparse.Namespace) -> dict[str, Any]:
    """The server arguments that were given."""
    return _given(arguments, "server_")


def add_sampling_flags(parser: argparse.ArgumentParser, *, leave_out: Iterable[str] = ()) -> None:
    """Flags for the sampling parameters; ``--seed`` is the engine's, from which every request draws its own."""
    group = parser.add_argument_group(
        "sampling", "What is not given is as the model's generation_config.json says, else as in brackets."
    )
    names = [name for name in SAMPLING if name not in leave_out]
    _add_flags(group, SamplingParams, names, "sampling_", {"max_tokens": MAX_TOKENS})
    group.add_argument(
        "--stop", action="append", dest="sampling_stop", default=argparse.SUPPRESS, metavar="TEXT",
        help="end at this text; may be given several times",
    )  # fmt: skip


def sampling_args(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that were given."""
    return _given(arguments, "sampling_")


def docstring_lines(cls: type) -> dict[str, str]:
    """Field -> its description, from the table in a class's docstring (``name, name   what it is``)."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (cls.__doc__ or "").splitlines():
        entry = re.match(r" {4}(\w+(?:, \w+)*) {2,}(\S.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif names and line.startswith(" " * 8) and line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _add_flags(
    group: argparse._ArgumentGroup, cls: type, names: Iterable[str], prefix: str, own: Mapping[str, Any] | None = None
) -> None:
    """A flag for each name; ``own`` are the defaults that the command line does not share with ``cls``."""
    hints, texts = get_type_hints(cls), docstring_lines(cls)
    defaults = {f.name: f.default for f in fields(cls)} | dict(own or {})
    for name in names:
        default = defaults[name]
        text = texts.get(name, "").replace("%", "%%")
        options: dict[str, Any] = {"dest": prefix + name, "default": argparse.SUPPRESS, "help": f"{text} [{default}]"}
        kind = hints[name]
        if get_origin(kind) in (Union, UnionType):
            kind = next(t for t in get_args(kind) if t is not NoneType)
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            text = f"{text}; one or more"
            options |= {"nargs": "+", "action": "extend", "type": get_args(kind)[0], "help": text}
            options["metavar"] = get_args(kind)[0].__name__.upper()
        elif get_origin(kind) is dict:
            options |= {"type": _json_object, "metavar": "JSON"}
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        else:
            options |= {"type": kind, "metavar": kind.__name__.upper()}
        group.add_argument("--" + name.replace("_", "-"), **options)


def _json_object(text: str) -> dict[str, Any]:
    """A JSON object as a dict, or argparse's error."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is JSON, but no object")
    return value


def _given(arguments: argparse.Namespace, prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in vars(arguments).items() if k.startswith(prefix)}
