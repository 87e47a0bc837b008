"""``quire ui``: the playground, in front of one server or several. ``quire serve --ui`` has it at /ui of the server.

The page speaks HTTP to the servers and imports nothing of the engine; what it says about the sampling parameters is
handed to it here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from quire.cli.flags import docstring_lines
from quire.reference.control.errors import ConfigError
from quire.reference.control.params import SamplingParams

DEFAULT_URL = "http://127.0.0.1:8000"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", action="append", metavar="URL",
        help=f"a server's address; several, to compare servers with different settings [{DEFAULT_URL}]",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0 takes a free one [7860]")


def run(arguments: argparse.Namespace) -> int:
    check_installed()
    urls = arguments.url or [DEFAULT_URL]
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError("url", url, "no address of a server", f"Give one such as {DEFAULT_URL}")

    from quire.server.supervisor import listen
    from quire.server.supervisor import url as address
    from quire.ui.app import server

    with listen(arguments.host, arguments.port) as listener:
        playground = server(urls, meanings())
        print(f"playground at {address(*listener.getsockname()[:2])} (Ctrl-C ends it)", flush=True)
        playground.run(sockets=[listener])
    return 0


def mount(app: Any, url: str) -> Callable[[], None]:
    """Put the playground at /ui of the server's own FastAPI application, which answers at ``url``.

    Returns what lets go of open pages, for when the server is to end.
    """
    check_installed()
    from quire.ui.app import mount as mount_page

    return mount_page(app, "/ui", [url], meanings())


def meanings() -> dict[str, str]:
    """Sampling parameter -> what it means, from the table that docs/parameters.md is made of."""
    return {name: text.replace("``", "") for name, text in docstring_lines(SamplingParams).items()}


def check_installed() -> None:
    missing = [name for name in ("gradio", "httpx", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError("ui", ", ".join(missing), "not installed", "Run pip install 'quire[ui]'")
