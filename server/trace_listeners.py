"""An API process's end of ``GET /trace``: its listeners, and what each of them has not fetched yet.

All listeners get the same lines, each through a queue with a limit. One that does not keep up loses its queue: it is
told how many steps it has missed and then, once it reads again, where everything stands now. Meanwhile nobody waits for
it, neither the engine nor the other listeners.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec

from quire.server import messages

MAX_LISTENERS = 64  # per API process
MAX_LINES = 2000  # that a listener may leave unread,
MAX_BYTES = 16 << 20  # and bytes of them

STEP = b'{"type":"step"'  # how the line of a step begins

encode = msgspec.json.Encoder().encode


class Listener:
    """One listener. Iterate for lines, as JSON without a newline; it ends when the server does."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask  # for the state anew
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._missed: int | None = None  # steps, since it fell behind
        self._behind = True  # until there is a state to begin with
        self._asked = True  # whoever made it does
        self._closed = False
        self._news = asyncio.Event()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> bytes:
        while not self._lines:
            if self._closed:
                raise StopAsyncIteration
            if self._behind and not self._asked:  # now that it has read all: it is ready to begin again
                self._asked = True
                self._ask()
            self._news.clear()
            await self._news.wait()
        line = self._lines.popleft()
        self._size -= len(line)
        return line

    def begin(self, lines: list[bytes]) -> None:
        """Header and state, as asked for; what was missed before is said first."""
        if self._missed is not None:
            self.say({"type": "dropped", "steps": self._missed})
        self._missed, self._behind = None, False
        for line in lines:
            self._put(line)

    def put(self, line: bytes, missed: int) -> None:
        """A line of the trace; empty if the engine has left some out, ``missed`` steps among them."""
        if self._behind:
            if self._missed is not None:
                self._missed += missed or line.startswith(STEP)
        elif not line or len(self._lines) >= MAX_LINES or self._size + len(line) > MAX_BYTES:
            lost = sum(waiting.startswith(STEP) for waiting in self._lines)
            self._lines.clear()
            self._size = 0
            self._missed = lost + (missed or line.startswith(STEP))
            self._behind, self._asked = True, False
            self._news.set()
        else:
            self._put(line)

    def say(self, line: dict[str, Any]) -> None:
        """A line of the server's own."""
        self._put(encode(line))

    def lost(self, reason: str) -> None:
        """There is no engine; when one is back, ``begin`` follows."""
        self._behind, self._asked, self._missed = True, True, None
        self.say({"type": "lost", "reason": reason})

    def close(self) -> None:
        self._closed = True
        self._news.set()

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        self._news.set()


class TraceListeners:
    """All listeners of an API process. ``send`` takes a message to the engine.

    text   ask for a trace with tokens in it; else it has counts in their place
    """

    def __init__(self, send: Callable[[messages.ToEngine], None]) -> None:
        self.text = False
        self._send = send
        self._ready = False
        self._numbers = count(1)
        self._listeners: dict[int, Listener] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self) -> tuple[int, Listener]:
        """A new listener and its number, for ``remove``."""
        number = next(self._numbers)
        self._listeners[number] = Listener(lambda: self._ask(number))
        self._ask(number)
        return number, self._listeners[number]

    def remove(self, number: int) -> None:
        if self._listeners.pop(number, None) is not None and not self._listeners and self._ready:
            self._send(messages.Unlisten())

    def begin(self, number: int, lines: list[bytes]) -> None:
        """The engine's answer to a listener; it may have gone meanwhile."""
        listener = self._listeners.get(number)
        if listener is not None:
            listener.begin(lines)
        elif not self._listeners:
            self._send(messages.Unlisten())

    def put(self, line: bytes, missed: int) -> None:
        for listener in self._listeners.values():
            listener.put(line, missed)

    def engine_ready(self) -> None:
        """There is an engine (again): every listener begins."""
        self._ready = True
        for number in self._listeners:
            self._ask(number)

    def engine_lost(self, reason: str) -> None:
        self._ready = False
        for listener in self._listeners.values():
            listener.lost(reason)

    def close(self) -> None:
        """The server ends, and every stream with it."""
        self._ready = False
        for listener in self._listeners.values():
            listener.close()

    def _ask(self, number: int) -> None:
        if self._ready:
            self._send(messages.Listen(number, self.text))
