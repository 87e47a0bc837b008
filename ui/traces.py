"""What the browser fetches besides the page: a server's live trace, and the recorded ones.

The page comes from here and may not ask another origin for anything, so a server's /trace is passed on: with the key
that the page sends, and only of the servers that the playground was started with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from quire.ui import trace
from quire.ui.client import Client, ServerError


def routes(client: Client) -> APIRouter:
    """``live?server=URL`` and ``traces/NAME.jsonl``, to be mounted where the page is."""
    router = APIRouter()

    @router.get("/live")
    async def live(server: str, request: Request) -> Response:
        """The stream of a server's /trace; its own words where it refuses."""
        if server not in client.urls:
            return failure(404, f"{server} is not one of the servers of this playground")
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        stream = client.trace(server, key)
        try:
            first = await anext(stream)
        except ServerError as error:
            return failure(502, str(error))
        except StopAsyncIteration:
            return failure(502, f"{server} ended its trace at once")
        return StreamingResponse(continued(first, stream), media_type="text/event-stream")

    @router.get("/traces/{name}.jsonl")
    def recorded(name: str) -> Response:
        """The trace that was recorded of a scenario."""
        try:
            return PlainTextResponse(trace(name))
        except KeyError as error:
            return failure(404, str(error.args[0]))

    return router


async def continued(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream, to its end or to where the server is gone; the browser sees the connection close."""
    yield first
    try:
        async for chunk in rest:
            yield chunk
    except ServerError:
        return


def failure(status: int, message: str) -> JSONResponse:
    body: dict[str, Any] = {"error": {"message": message}}
    return JSONResponse(body, status)
