"""Answers that take a while: server-sent events, and plain answers whose client may go away meanwhile.

Both race the work against the client's disconnect, which ASGI reports as a message to be received. When the client is
gone the work is cancelled, and a cancelled ``Generation`` aborts its request in the engine. A client that reads slowly
holds up ``send`` here (the transport's flow control) and nothing else: meanwhile the generation merges its outputs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.reference.outputs import RequestOutput
from quire.server.client import Generation
from quire.server.errors import ApiError, noted

T = TypeVar("T")
logger = logging.getLogger("quire.server")

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event. ``data`` is anything that JSON can say; ``name`` becomes the event's type."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(Response):
    """A stream of ready-made events. An exception in their making becomes an error event, and the stream ends.

    ``generations`` are aborted when the stream ends in any way.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], generations: Sequence[Generation], *, end: bytes = DONE) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._generations = generations
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(self._send_all(send), receive)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            last = self._end
        except Exception as error:
            last = event(error_event(error))
        finally:
            for generation in self._generations:
                generation.abort()
        await send({"type": "http.response.body", "body": last, "more_body": False})


def error_event(error: Exception) -> dict[str, Any]:
    """The error object for an answer that has begun. What nobody expected is logged."""
    api_error = noted(error)
    if api_error.status == 500 and not isinstance(error, ApiError):
        logger.error("a stream failed", exc_info=error)
    return api_error.body()


async def until_gone(work: Coroutine[Any, Any, T], receive: Callable[[], Awaitable[Any]]) -> T | None:
    """Await ``work``, or cancel it and return None when the client disconnects."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    worker, watcher = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        for task in (worker, watcher):
            if not task.done():
                task.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def answer(request: Request, work: Coroutine[Any, Any, Any]) -> Response:
    """The JSON of what ``work`` returns; the work is cancelled if the client does not wait for it."""
    body = await until_gone(work, request.receive)
    if body is None:
        return Response(status_code=499)  # nginx's word for it; nobody is there to read it
    return json_response(body)


def json_response(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


async def all_admitted(adding: Iterable[Awaitable[Generation]]) -> list[Generation]:
    """What ``ServerState.add`` returns for each of several prompts. If one is refused, none runs, and it raises."""
    tasks = [asyncio.ensure_future(one) for one in adding]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:  # also when the client goes away meanwhile
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Generation):
                result.abort()
        raise


async def final_outputs(generations: Sequence[Generation]) -> list[RequestOutput]:
    """The last output of each, in their order; all of them end when one fails or nobody waits any longer."""
    outputs: dict[int, RequestOutput] = {}
    try:
        async for number, output in merged_outputs(generations):
            outputs[number] = output
    finally:
        for generation in generations:
            generation.abort()
    return [outputs[number] for number in range(len(generations))]


async def merged_outputs(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Any]]:
    """Outputs of several generations as they come, each with the number of its generation."""
    if len(generations) == 1:
        async for output in generations[0]:
            yield 0, output
        return
    queue: asyncio.Queue[tuple[int, Any, Exception | None]] = asyncio.Queue(maxsize=len(generations))

    async def pump(number: int) -> None:
        try:
            async for output in generations[number]:
                await queue.put((number, output, None))
        except Exception as error:
            await queue.put((number, None, error))
        else:
            await queue.put((number, None, None))

    pumps = [asyncio.ensure_future(pump(i)) for i in range(len(generations))]
    try:
        running = len(pumps)
        while running:
            number, output, error = await queue.get()
            if error is not None:
                raise error
            if output is None:
                running -= 1
            else:
                yield number, output
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
