"""A live server for tests: real HTTP on a free port, real messages, the engine in a thread.

``serve(...)`` is the general form; the fixture ``server`` is one on the embedded model that all tests share.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from quire.reference.config import EngineConfig
from quire.reference.engine import Engine
from quire.server.app import build_app
from quire.server.config import ServerConfig
from quire.server.local import LocalEngine
from quire.server.state import ServerState

PATIENCE = 120.0  # seconds for what must happen, however busy the machine is; what never happens fails after them


@dataclass
class LiveServer:
    """A server that answers at ``url``; ``engine`` and ``state`` are there to look into (from the test's thread)."""

    url: str
    engine: Engine
    state: ServerState

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)


@contextmanager
def serve(
    config: EngineConfig | None = None, *, engine: Engine | None = None, server: ServerConfig | None = None
) -> Iterator[LiveServer]:
    """Start a server and wait until it is ready. ``engine`` replaces the model (a ghost, a scripted runner)."""
    with LocalEngine(config or EngineConfig(), engine=engine) as local:
        app = build_app(local.client, server)
        with in_thread(uvicorn.Server(uvicorn.Config(app, loop="asyncio", log_level="warning", lifespan="on"))) as url:
            eventually(lambda: local.client.state == "ready")
            yield LiveServer(url, local.engine, app.state.quire)


@contextmanager
def in_thread(server: uvicorn.Server) -> Iterator[str]:
    """Run ``server`` in a thread, on a free port; its address, once it answers there."""
    errors: list[BaseException] = []

    def run(listener: socket.socket) -> None:
        try:
            server.run(sockets=[listener])
        except BaseException as error:
            errors.append(error)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=run, args=(listener,), daemon=True)
        thread.start()
        try:
            eventually(lambda: server.started or errors)
            assert not errors, errors
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
        assert not thread.is_alive(), "the server does not end"
        assert not errors, errors


def eventually(true: Callable[[], object]) -> None:
    """Wait until something holds. Only for what cannot tell when it does."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
