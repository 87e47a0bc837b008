"""The application without an engine behind it, and with routes to try the middleware on."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, StreamingResponse

from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.server.app import build_app
from quire.server.client import EngineClient
from quire.server.config import ServerConfig


def toy_app(**settings) -> FastAPI:
    """``build_app`` on an engine that never answers, plus /length, /fail, /fail-midway, /hold, /stream and /mounted.

    /hold answers, and /stream ends, once ``app.state.release`` (an event) is set; ``app.state.arrived`` is set when one
    has begun.
    """
    app = build_app(
        EngineClient("ipc:///tmp/quire-nobody-listens", load_assets(EngineConfig())), ServerConfig(**settings)
    )
    app.state.release, app.state.arrived = asyncio.Event(), asyncio.Event()

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/fail")
    async def fail() -> None:
        raise ZeroDivisionError("a secret of the inside")

    @app.get("/fail-midway")
    async def fail_midway() -> StreamingResponse:
        async def body():
            yield b"begun"
            raise ZeroDivisionError("a secret of the inside")

        return StreamingResponse(body())

    @app.get("/hold")
    async def hold() -> str:
        app.state.arrived.set()
        await app.state.release.wait()
        return "held"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def body():
            yield b"begun"
            app.state.arrived.set()
            await app.state.release.wait()
            yield b" and ended"

        return StreamingResponse(body())

    app.mount("/mounted", PlainTextResponse("from inside"))
    return app


def http(app: FastAPI, **options) -> httpx.AsyncClient:
    """A client that calls ``app`` directly. What leaves it as an exception is an error of the test."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://quire", **options)
