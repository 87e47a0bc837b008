"""The application without an engine behind it, and with routes to try the middleware on."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse, StreamingResponse

from quire.assets import load_assets
from quire.reference.config import EngineConfig
from quire.reference.control.params import SamplingParams
from quire.reference.output_processor import Processed
from quire.reference.outputs import RequestMetrics
from quire.server.app import build_app
from quire.server.client import EngineClient
from quire.server.config import ServerConfig
from quire.server.context import RequestRecord


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


def every_metric() -> list[Metric]:
    """What a scrape brings, with a sample of every metric there is."""
    metrics = toy_app().state.quire.metrics
    request = RequestMetrics(1.0, 5, 1.25, 1.5, 2.0, 2.5, finish_reasons=["stop"])
    metrics.admitted(SamplingParams(max_tokens=1))
    metrics.observe(Processed(began=[request], ended=[request], gaps=[0.5], num_tokens=2))
    metrics.http_request(RequestRecord("1", "GET", "/x", status=404, error="not_found"), "/x")
    families = text_string_to_metric_families(metrics.exposition().decode())
    return [family for family in families if not family.name.endswith("_created")]
