"""The process that ``quire serve`` starts: it owns the port, and watches over the processes that do the work.

    supervisor ─┬─ engine    scheduler and model (child.py, engine_loop.py)
                ├─ api-0     HTTP, text, JSON (child.py, app.py)
                └─ api-1 …   with --api-server-count

It does nothing else, so nothing that goes wrong in the others takes it down. The listening socket is opened here and
inherited, so the port stays open whoever dies. A child is given its job as a line of JSON on stdin, and reports on
stdout: ``ready``, or ``failed`` and why. It ends by itself when its stdin ends, whatever the supervisor died of.

First SIGTERM or SIGINT: the API processes take no more requests and finish those they have, up to
``shutdown_timeout``, then the engine ends. Second one: all end at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig
from quire.server.logging import configure_logging

logger = logging.getLogger("quire.supervisor")

BACKOFF = (0.5, 30.0)  # seconds before a restart: at first, doubled each time, and at most
STEADY = 60.0  # seconds of service after which a death counts as the first one again
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable: API processes add up their metrics there
MAX_FOLDER = 90  # characters; the name of a socket may have about a hundred
GRACE = 5.0  # seconds beyond shutdown_timeout before what still runs is killed


@dataclass
class Child:
    """One process under watch. ``ready`` is set once it has ever served."""

    role: str  # "engine", "api-0", …
    job: dict[str, Any]
    restart: bool
    environ: dict[str, str]
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failure: str = ""  # why it could not start
    process: asyncio.subprocess.Process | None = None
    early: int | None = None  # a signal that came before there was a process

    async def run(self, fds: Iterable[int] = ()) -> int:
        """Start the process and wait for its end: its exit status, negative for a signal's."""
        self.failure = ""
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "quire.server.child", self.role,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=tuple(fds), env=self.environ,
                start_new_session=True,  # Ctrl-C in a terminal is for the supervisor
            )  # fmt: skip
        except OSError as error:  # no memory, no more processes
            self.failure = f"cannot start a process ({error.strerror})"
            return 1
        if self.early is not None:
            self.signal(self.early)
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(ConnectionError):  # it died at once; its status tells
            self.process.stdin.write(json.dumps(self.job).encode() + b"\n")
            await self.process.stdin.drain()
        while line := (await self.process.stdout.readline()).decode(errors="replace"):
            word, _, rest = line.strip().partition(" ")
            if word == "ready":
                self.ready.set()
            elif word == "failed":
                self.failure = json.loads(rest)
        status = await self.process.wait()
        self.process.stdin.close()
        return status

    def signal(self, number: int) -> None:
        if self.process is None:
            self.early = number
        elif self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs the children until told to stop. ``run`` returns the exit status of ``quire serve``."""

    def __init__(self, engine: EngineConfig, server: ServerConfig, listener: socket.socket, folder: Path) -> None:
        self.server = server
        self._fds = (listener.fileno(),)
        job = {"engine": asdict(engine), "server": asdict(server), "address": f"ipc://{folder / 'engine'}"}
        environ = {name: value for name, value in os.environ.items() if name != METRICS_FOLDER}
        self.engine = Child("engine", job, server.restart_engine, environ)
        if server.api_server_count > 1:
            environ = environ | {METRICS_FOLDER: tempfile.mkdtemp(prefix="metrics-", dir=folder)}
        self.apis = [
            Child(f"api-{i}", job | {"listener": listener.fileno()}, True, environ)
            for i in range(server.api_server_count)
        ]
        self._stopping = asyncio.Event()
        self._signals = 0
        self._status = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        engine = asyncio.create_task(self._watch(self.engine))
        apis = [asyncio.create_task(self._watch(api, self._fds)) for api in self.apis]
        serving = asyncio.create_task(self._announce())
        await self._stopping.wait()
        serving.cancel()
        await self._end(self.apis, apis, self.server.shutdown_timeout + GRACE)
        await self._end([self.engine], [engine], GRACE)
        return self._status

    async def _announce(self) -> None:
        """Say when everything serves for the first time."""
        began = time.monotonic()
        await asyncio.gather(*(child.ready.wait() for child in (self.engine, *self.apis)))
        where = url(self.server.host, socket.socket(fileno=os.dup(self._fds[0])).getsockname()[1])
        logger.info("listening on %s after %.1f s; stop with Ctrl-C or SIGTERM", where, time.monotonic() - began)
        if self.server.ui:
            logger.info("playground at %s/ui/", where)

    async def _watch(self, child: Child, fds: Iterable[int] = ()) -> None:
        """Keep a child running; stop the server when it cannot or shall not be started again."""
        pause = BACKOFF[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            status = await child.run(fds)
            if self._stopping.is_set():
                return
            if not child.ready.is_set():
                if child.failure:
                    print(f"quire: {child.failure}", file=sys.stderr)
                else:
                    logger.error("%s ended with %s before it was ready", child.role, ending(status))
                self.stop(2 if status == 2 else 1)
                return
            if not child.restart:
                logger.error("%s ended with %s; the server ends (see --restart-engine)", child.role, ending(status))
                self.stop(1)
                return
            if time.monotonic() - began > STEADY:
                pause = BACKOFF[0]
            why = child.failure or ending(status)
            logger.error("%s ended with %s; it is started again in %g s", child.role, why, pause)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, BACKOFF[1])

    async def _end(self, children: list[Child], watchers: list[asyncio.Task[None]], timeout: float) -> None:
        """Ask children to end, wait for it, and kill those that do not."""
        for child in children:
            child.signal(signal.SIGTERM)
        _, running = await asyncio.wait(watchers, timeout=timeout)
        for child in children if running else ():
            logger.error("%s does not end; it is killed", child.role)
            child.signal(signal.SIGKILL)
        await asyncio.wait(watchers)

    def stop(self, status: int) -> None:
        if not self._stopping.is_set():
            self._status = status
            self._stopping.set()

    def _signalled(self, number: int) -> None:
        self._signals += 1
        if self._signals == 1:
            logger.info("%s: finishing what runs; again to stop at once", signal.Signals(number).name)
            self.stop(0)
        else:
            self._status = 128 + number
            for child in (self.engine, *self.apis):
                child.signal(signal.SIGKILL)


def serve(engine: EngineConfig, server: ServerConfig) -> int:
    """Run the server until it is told to end; the exit status: 0 = as told, 1 = something failed, 2 = bad settings.

    Raises ``ConfigError`` if the port cannot be had.
    """
    configure_logging(server)
    with listen(server.host, server.port) as listener, tempfile.TemporaryDirectory(prefix="quire-") as folder:
        # The folder is ours alone (mode 0700): whoever can open the engine's socket can use the engine.
        if len(folder) > MAX_FOLDER:
            raise ConfigError("TMPDIR", folder, "too long for the name of a socket", "Set TMPDIR to a shorter one")
        return asyncio.run(Supervisor(engine, server, listener, Path(folder)).run())


def listen(host: str, port: int) -> socket.socket:
    """The server's socket. ``port`` 0 takes a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        problem = f"cannot listen on {host} ({error.strerror})"
        raise ConfigError("port", port, problem, "Give another --host or --port") from None
    return listener


def url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ending(status: int) -> str:
    """How a process ended, for people."""
    if status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
