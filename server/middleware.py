"""What every request passes through before its route: plain ASGI, so that streams flow through untouched.

From the outside in (``wrap``)::

    RequestContext    an id, in the response too; when all is over one line in the log, metrics, a span
    CORS              Starlette's; so that a browser may read refusals as well
    Failures          an exception that nobody else handles becomes a 500 without a word of its inside
    Authentication    no key, no answer
    Admission         503 while draining, 429 beyond the number of requests at once
    Body              413 beyond the size of a body, 400 for text in it that is none
    routes            their errors become responses in errors.py
"""

from __future__ import annotations

import json
import logging
import re
import uuid

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.server.auth import Authentication, is_ui, load_api_keys
from quire.server.context import RequestRecord, current
from quire.server.errors import ApiError, respond
from quire.server.logging import log_request
from quire.server.state import ServerState

logger = logging.getLogger("quire.server")

SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
SURROGATES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # as JSON escapes them, and as they stand
UNLIMITED = (
    "/health",
    "/ready",
    "/metrics",
    "/trace",
)  # must answer when nothing else does; nobody waits for their end


def wrap(app: FastAPI, state: ServerState) -> None:
    """Put the middleware in front of ``app``; what is added last is outermost."""
    config = state.config
    app.add_middleware(Body, limit=config.max_body_size)
    app.add_middleware(Admission, state=state)
    app.add_middleware(Authentication, keys=load_api_keys(config), public_metrics=config.public_metrics,
                       ui=config.ui)  # fmt: skip
    app.add_middleware(Failures)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=("X-Request-Id", "Retry-After"),
        )
    app.add_middleware(RequestContext, state=state)


class RequestContext:
    """Gives a request its id and its ``RequestRecord``, and reports on it when it is over."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(request_id(scope), scope["method"], scope["path"])
        # Now, since a mounted application changes what the scope says of its path.
        probe = get_route_path(scope) in UNLIMITED or (self.state.config.ui and is_ui(scope))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        token = current.set(record)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            route = scope.get("route")  # the router has put it there; addresses that do not exist have none
            self.state.metrics.http_request(record, getattr(route, "path", "none"))
            if self.state.config.log_requests:
                log_request(record, quiet=probe)
            if self.state.tracing is not None and not probe:
                self.state.tracing.record(record, scope["headers"])
            current.reset(token)


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is short and of harmless characters, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(given := value.decode("latin-1")):
            return given
    return uuid.uuid4().hex


class Failures:
    """The last resort for exceptions: logged with their traceback, told to nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"].encode("unicode_escape").decode())
            if not started:
                await respond(error)(scope, receive, send)
            # Else nothing more can be said: the HTTP server closes the connection of an unfinished response.


class Admission:
    """Turns requests away while draining and beyond ``max_concurrent_requests``; a stream counts until it has ended."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or get_route_path(scope) in UNLIMITED or (self.state.config.ui and is_ui(scope)):
            await self.app(scope, receive, send)  # an open page holds a connection, but is no work to wait for
            return
        limit = self.state.config.max_concurrent_requests
        if self.state.draining:
            message = "the server is shutting down and takes no more requests; try again later"
            error = ApiError(503, message, code="draining", headers={"Retry-After": "5"})
        elif self.state.num_running >= limit:
            message = f"the server is busy with {limit} requests, the most that it takes at once; try again later"
            error = ApiError(429, message, code="overloaded", headers={"Retry-After": "1"})
        else:
            with self.state.running():
                await self.app(scope, receive, send)
            return
        await respond(error)(scope, receive, send)


class Body:
    """Reads the body, up to ``limit`` bytes, before anything looks at it: every route wants all of it anyway."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        chunks: list[bytes] = []
        error: ApiError | None = None
        too_long = announced.isdigit() and int(announced) > self.limit  # then it is not even begun
        more, size = not too_long, 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            too_long = size > self.limit
            more = message.get("more_body", False) and not too_long
        if too_long:
            error = ApiError(413, f"the body is longer than the {self.limit} bytes that this server takes",
                             code="body_too_large")  # fmt: skip
        else:
            content = b"".join(chunks)
            error = broken_text(content)
        chunks.clear()
        if error is not None:
            await respond(error)(scope, receive, send)
            return
        body: Message | None = {"type": "http.request", "body": content, "more_body": False}
        del content

        async def receive_again() -> Message:
            nonlocal body
            message, body = body, None
            return await receive() if message is None else message

        await self.app(scope, receive_again, send)


def broken_text(body: bytes) -> ApiError | None:
    """The error for a JSON body with half a surrogate pair in it: no character, so that no answer could repeat it."""
    if SURROGATES.search(body) is None:
        return None
    name = None
    try:
        fields = json.loads(body)
        for name, value in fields.items() if isinstance(fields, dict) else ():
            json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        param = str(name).encode(errors="backslashreplace").decode()
        message = f"'{param}' contains half a surrogate pair, which is no character; encode the text anew, as UTF-8"
        return ApiError(400, message, param=param, code="invalid_value")
    except (ValueError, RecursionError):
        pass  # the route says what is wrong
    return None
