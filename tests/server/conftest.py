"""A live server for tests: real HTTP on a free port, real messages, the engine in a thread.

``serve(...)`` is the general form; the fixture ``server`` is one on the embedded model that all tests share.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
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


@dataclass
class LiveServer:
    """A server that answers at ``url``; ``engine`` and ``state`` are there to look into (from the test's thread)."""

    url: str
    engine: Engine
    state: ServerState

    def http(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


@contextmanager
def serve(
    config: EngineConfig | None = None, *, engine: Engine | None = None, server: ServerConfig | None = None
) -> Iterator[LiveServer]:
    """Start a server and wait until it is ready. ``engine`` replaces the model (a ghost, a scripted runner)."""
    with LocalEngine(config or EngineConfig(), engine=engine) as local, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = build_app(local.client, server)
        uv = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))

        async def main() -> None:
            serving = asyncio.ensure_future(uv.serve(sockets=[listener]))
            while not uv.started:
                await asyncio.sleep(0.005)
            await local.client.wait_until_ready(30)
            ready.set()
            await serving

        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        thread.start()
        assert ready.wait(30), "the server did not start"
        try:
            yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", local.engine, app.state.quire)
        finally:
            uv.should_exit = True
            thread.join(30)
