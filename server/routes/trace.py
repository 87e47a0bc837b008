"""GET /trace: every step of the engine as it happens, for the inspector. docs/trace.md has the format."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from quire.server.errors import ApiError
from quire.server.protocol.common import ErrorBody
from quire.server.state import ServerState
from quire.server.stream import EventStream
from quire.server.trace_listeners import MAX_LISTENERS, Listener

router = APIRouter()

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "the trace, line by line", "content": {"text/event-stream": {}}},
    "4XX": {"model": ErrorBody, "description": "there is no trace to be had; the error object says why"},
}
STILL_HERE = 15.0  # seconds of silence after which a comment is sent: proxies end connections that say nothing


@router.get("/trace", response_class=Response, responses=DOCUMENTED)
async def trace(request: Request) -> Response:
    """Every step of the engine, as server-sent events: see docs/trace.md. Needs `--enable-trace`."""
    state = ServerState.of(request)
    if not state.config.enable_trace:
        message = "enable_trace=False: this server does not stream its trace. Start it with --enable-trace"
        raise ApiError(404, message, param="enable_trace", code="trace_disabled")
    if len(state.engine.traces) >= MAX_LISTENERS:
        message = f"{MAX_LISTENERS} listeners are the most that one trace has; close one, or come back later"
        raise ApiError(429, message, code="overloaded", headers={"Retry-After": "5"})
    return EventStream(events(state), (), end=b"")


async def events(state: ServerState) -> AsyncIterator[bytes]:
    """The trace's lines as events. With trace_text, what tokens say stands beside them."""
    number, listener = state.engine.traces.add()
    try:
        while True:
            line = await soon(listener)
            if line is None:
                yield b":\n\n"
            elif not line:
                return
            else:
                yield b"data: " + (with_text(state, line) if state.config.trace_text else line) + b"\n\n"
    finally:
        state.engine.traces.remove(number)


async def soon(listener: Listener) -> bytes | None:
    """The next line; None if there is none for a while, empty at the end."""
    with contextlib.suppress(asyncio.TimeoutError):
        try:
            return await asyncio.wait_for(listener.__anext__(), STILL_HERE)
        except StopAsyncIteration:
            return b""
    return None


def with_text(state: ServerState, line: bytes) -> bytes:
    """Put the text beside the token ids: of prompts, and of what each event brought.

    A character whose bytes are spread over several events shows as a replacement character: these are not answers, they
    are what each step brought.
    """
    data: dict[str, Any] = msgspec.json.decode(line)
    decode = state.engine.assets.get_tokenizer().decode
    for part in (data, *data.get("requests", ()), *data.get("events", ())):
        if "token_ids" in part:
            part["text"] = decode(part["token_ids"])
    return msgspec.json.encode(data)
