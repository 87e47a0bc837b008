"""``quire serve [MODEL]``: the OpenAI-compatible server."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from quire.cli.flags import add_engine_flags, add_server_flags, engine_args, server_args
from quire.cli.ui import check_installed
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig, read_config

# What the server imports and the engine does not; pydantic and starlette come with fastapi.
NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "zmq", "msgspec", "prometheus_client")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("served", nargs="?", metavar="MODEL", help="the same as --model [the embedded one]")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of arguments; the command line wins")
    parser.add_argument(
        "--disable-log-requests", action="store_false", dest="server_log_requests", default=argparse.SUPPRESS,
        help="the same as --no-log-requests",
    )  # fmt: skip
    add_server_flags(parser)
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError("serve", ", ".join(missing), "not installed", "Run pip install 'quire[server]'")
    engine, server = settings(arguments)
    if server.ui:
        check_installed()
    from quire.server.supervisor import serve

    return serve(engine, server)


def settings(arguments: argparse.Namespace) -> tuple[EngineConfig, ServerConfig]:
    """The engine's and the server's settings: from the environment, then the file, then the command line."""
    engine, server = engine_args(arguments), server_args(arguments)
    if arguments.served is not None and engine.setdefault("model", arguments.served) != arguments.served:
        raise ConfigError("model", engine["model"], f"MODEL is {arguments.served!r}", "Name the model once")
    given = read_config(arguments.config) if arguments.config is not None else {}
    names = {f.name for f in fields(ServerConfig)}
    server = {k: v for k, v in given.items() if k in names} | server
    engine = {k: v for k, v in given.items() if k not in names} | engine
    keys = os.environ.get("QUIRE_API_KEY")
    if keys and "api_key" not in server and "api_key_file" not in server:
        server["api_key"] = tuple(key.strip() for key in keys.split(",") if key.strip())
    return EngineConfig(**engine), ServerConfig(**server)
