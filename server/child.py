"""The processes under the supervisor: ``python -m quire.server.child engine`` and ``… api-0``.

Each reads its job from stdin, says ``ready`` (or ``failed`` and why) on stdout, serves until SIGTERM, and ends when
its stdin does: then the supervisor is no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from quire.reference.config import EngineConfig
from quire.reference.control.errors import QuireError
from quire.reference.engine import EngineError
from quire.server.config import ServerConfig
from quire.server.logging import configure_logging

logger = logging.getLogger("quire.engine")

Job = dict[str, Any]
Say = Callable[..., None]


def main() -> int:
    role = sys.argv[1]
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_supervisor, name="quire-stdin", daemon=True).start()
    engine, server = EngineConfig(**job["engine"]), ServerConfig(**job["server"])
    configure_logging(server)
    with _reports() as say:
        try:
            if role == "engine":
                run_engine(engine, job["address"], say)
            else:
                run_api(engine, server, job, role, say)
        except QuireError as error:
            say("failed", json.dumps(str(error)))
            return 2
        except EngineError:  # logged, and told to the API processes
            return 1
    return 0


def run_engine(config: EngineConfig, address: str, say: Say) -> None:
    """Load the model and serve it at ``address``. SIGTERM ends the loading at once, the serving between two steps."""
    began = time.monotonic()

    from quire import backend
    from quire.assets import load_assets
    from quire.server.engine_loop import EngineLoop

    assets = load_assets(config)
    engine = backend.build_engine(
        config, assets.path, eos_token_ids=assets.eos_token_ids, tokenizer=assets.get_tokenizer
    )
    loop = EngineLoop(engine, address)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    blocks, facts = engine.stats().blocks_total, engine.model
    logger.info(
        "engine ready after %.1f s: model %s, up to %d tokens a sequence, %d KV blocks of %d tokens",
        time.monotonic() - began, facts.name, facts.max_model_len, blocks, config.block_size,
    )  # fmt: skip
    say("ready")
    loop.run()


def run_api(config: EngineConfig, server: ServerConfig, job: Job, name: str, say: Say) -> None:
    """Serve HTTP on the supervisor's socket, in front of the engine at the job's ``address``."""
    import uvicorn

    from quire.assets import load_assets
    from quire.server.app import build_app
    from quire.server.client import EngineClient
    from quire.server.state import ServerState

    client = EngineClient(job["address"], load_assets(config), name=name)
    app = build_app(client, server)
    state: ServerState = app.state.quire
    state.check_settings()
    listener = socket.socket(fileno=job["listener"])
    end_pages = None
    if server.ui:
        from quire.cli.ui import mount  # by way of the face: the server itself knows nothing of the page

        end_pages = mount(app, local_url(*listener.getsockname()[:2]))

    class Http(uvicorn.Server):
        """uvicorn with our own way to end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self.loop = asyncio.get_running_loop()
            self.tasks = [asyncio.create_task(self._report())]

        async def _report(self) -> None:
            await client.wait_until_ready()
            say("ready")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            state.draining = True
            self.loop.call_soon_threadsafe(lambda: self.tasks.append(asyncio.create_task(self._drain())))

        async def _drain(self) -> None:
            """Let running requests finish; those that have not by the deadline get an error."""
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(state.idle(), server.shutdown_timeout)
            client.close()
            if end_pages is not None:
                end_pages()
            self.should_exit = True

    http = Http(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            log_level="warning",  # that it has started, the supervisor says
            server_header=False,
            timeout_keep_alive=75,  # longer than clients keep idle connections: then they close, and none is lost
            timeout_graceful_shutdown=2,
        )
    )
    http.run(sockets=[listener])


def local_url(host: str, port: int) -> str:
    """How a process of this machine reaches a server that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _reports() -> Iterator[Say]:
    """What writes to the supervisor; whatever else prints goes to stderr."""
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)

        def say(*words: str) -> None:
            with contextlib.suppress(BrokenPipeError):
                print(*words, file=pipe, flush=True)

        yield say


def _die_with_supervisor() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more ever comes; without Python's buffer, whose lock would outlive us
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
