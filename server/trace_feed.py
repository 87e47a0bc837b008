"""The engine's end of ``GET /trace``: the lines of the trace, for the API processes that have listeners.

There is a feed only while somebody listens; before the first and after the last the engine records nothing. A line is
made and encoded once, whoever gets it. An API process that is behind with reading is sent no lines until it has caught
up, but their number: it then asks for the state anew. So nobody's slowness holds up a step, or grows in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.reference.control.request import Request
from quire.reference.engine import Engine
from quire.reference.trace import StepRecord, TraceLines
from quire.server import messages

BACKLOG = 64  # messages that an API process may have unread and still be sent lines

encode = msgspec.json.Encoder().encode


@dataclass
class Reader:
    """An API process with listeners. ``behind``: it was not sent something, ``missed`` steps among it."""

    behind: bool = False
    missed: int = 0


class TraceFeed:
    """A recorder that sends what it records. ``send(identity, message)`` queues a message, ``unread`` counts them."""

    def __init__(
        self, engine: Engine, send: Callable[[bytes, messages.ToApi], None], unread: Callable[[bytes], int]
    ) -> None:
        self._engine = engine
        self._send = send
        self._unread = unread
        self._lines: TraceLines | None = None
        self._readers: dict[bytes, Reader] = {}

    def listen(self, identity: bytes, listener: int, text: bool) -> None:
        """A listener of an API process wants to begin (again): it gets the header and the state, then what follows."""
        if self._lines is None:
            engine = self._engine
            about = {"model": engine.model.name, "max_num_batched_tokens": engine.config.max_num_batched_tokens}
            self._lines = TraceLines(
                block_size=engine.config.block_size,
                num_blocks=engine.stats().blocks_total + 1,
                redact=not text,
                about=about,
            )
            engine.attach(self)
        self._readers[identity] = Reader()
        begin = [encode(self._lines.header), encode(self._lines.state(self._engine.snapshot()))]
        self._send(identity, messages.TraceBegin(listener, begin))

    def leave(self, identity: bytes) -> None:
        """An API process has no listeners any more, or is gone."""
        self._readers.pop(identity, None)
        if not self._readers and self._lines is not None:
            self._engine.detach(self)
            self._lines = None

    def catch_up(self) -> None:
        """Tell those who have caught up with reading what they missed."""
        for identity, reader in list(self._readers.items()):
            if reader.behind and not self._unread(identity):
                self._readers[identity] = Reader()
                self._send(identity, messages.TraceLine(b"", reader.missed))

    # --- what the engine calls ----------------------------------------------------------------------------------------

    def request(self, request: Request) -> None:
        if self._lines is not None:
            self._publish(self._lines.request(request), 0)

    def end(self, request_id: str, index: int, reason: str) -> None:
        if self._lines is not None:  # sending the line before may have found out that the last reader is gone
            self._publish(self._lines.end(request_id, index, reason), 0)

    def step(self, step: StepRecord) -> None:
        if self._lines is not None:
            self._publish(self._lines.step(step), 1)

    def close(self) -> None:
        """The engine ends; its API processes notice."""

    def _publish(self, line: dict[str, Any], steps: int) -> None:
        message: messages.TraceLine | None = None
        for identity, reader in list(self._readers.items()):
            if reader.behind or self._unread(identity) > BACKLOG:
                reader.behind = True
                reader.missed += steps
            else:
                message = message or messages.TraceLine(encode(line))
                self._send(identity, message)
