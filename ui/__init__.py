"""What a person sees: the playground, the drawing component for traces, and the scenarios worth watching. HTTP only.

    app.py         the page: tabs, looks, and how it is served; shared.py is what its tabs have in common
    chat.py        talking with a model; examples.py has things to try
    compare.py, inspector.py, lab.py    the other tabs; traces.py passes a server's live trace on to the browser
    conversation.py, parameters.py, tokens.py, share.py    its parts
    client.py      the line to the server: streams become answers, failures become sentences

    static/quire-trace.js   the custom element <quire-trace>; static/trace/ has its parts
    scenarios.py            load worth watching: requests, engine arguments, and the words for what happens
    pairs.py                the same for the documentation: a load with an idea switched on, and off
    record.py               plays a scenario against a server and keeps what /trace says, as in traces/
    traces/                 a recorded trace of each scenario, from the real engine

``component()`` gives the whole component as one text, for pages that have no server behind them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

# Before anything imports gradio, which otherwise reports how it is used.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

ENTRY = "quire-trace.js"

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([\w./-]+)";\n', re.M)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.M)


def static() -> Path:
    """The folder of files for browsers: the component, and its parts in ``trace/``."""
    return Path(str(resources.files("quire.ui").joinpath("static")))


def trace(name: str) -> str:
    """The recorded trace of a scenario, as JSON lines. Raises KeyError for a name that there is no trace of."""
    files = {file.stem: file for file in static().with_name("traces").glob("*.jsonl")}
    if name not in files:
        raise KeyError(f"no recorded trace {name!r}; there are {', '.join(sorted(files))}")
    return files[name].read_text("utf-8")


@cache
def component() -> str:
    """The component as one classic script: for a page of one file, a notebook's output or an iframe's ``srcdoc``.

    Each module becomes a function that returns its exports, behind those it imports from. The modules are written so
    that this is all a bundler has to do: named imports and exports, without renaming. ``</`` occurs nowhere in it, so
    that it may stand between script tags as it is.
    """
    body = "".join(_modules(ENTRY, {}))
    return f'(() => {{\n"use strict";\n{body}}})();\n'.replace("</", "<\\/")


def _modules(path: str, seen: dict[str, str]) -> Iterator[str]:
    """The module at ``path`` under ``static``, after the modules that it imports. ``seen``: path -> its variable."""
    seen[path] = f"module{len(seen)}"
    source = (static() / path).read_text("utf-8")
    folder = path.rpartition("/")[0]
    imports = {target: f"{folder}/{target}" if folder else target for _, target in _IMPORT.findall(source)}
    for target in imports.values():
        if target not in seen:
            yield from _modules(target, seen)
    source = _IMPORT.sub(lambda m: f"const {m[1]} = {seen[imports[m[2]]]};\n", source)
    names = ", ".join(_EXPORT.findall(source))
    source = _EXPORT.sub(lambda m: m[0].removeprefix("export "), source)
    yield f"const {seen[path]} = (() => {{\n{source}return {{ {names} }};\n}})();\n"
