"""quire's OpenAI-compatible server: any OpenAI client works against it without a changed line.

    quire serve                     HTTP on port 8000, the embedded model
    build_app(client, config)       the same as an ASGI application, to be mounted elsewhere

What runs where::

    supervisor.py       the process one starts: watches the others, hands them signals, restarts them
    engine_loop.py      the engine's process: takes requests from every API process, steps, sends events back
    client.py           an API process's line to the engine; text, stop strings and streams are made here
    app.py, routes/     HTTP: validation, prompts, JSON, server-sent events
    protocol/           the requests and responses of OpenAI's API, and what becomes of each field
    parsers/            tool calls and reasoning in a model's text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.server.app import build_app
    from quire.server.config import ServerConfig

__all__ = ["ServerConfig", "build_app"]

_HOME = {"build_app": "quire.server.app", "ServerConfig": "quire.server.config"}


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first used: the engine's process needs no FastAPI."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
