"""The HTTP application: routes in front of one engine client.

``build_app(engine)`` is all there is to embedding quire elsewhere::

    app = FastAPI()
    app.mount("/llm", build_app(LocalEngine(EngineConfig(model="pocket")).client))
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from quire import __version__
from quire.reference.control.errors import QuireError
from quire.server.client import EngineClient, EngineUnavailable, RequestTimeout
from quire.server.config import ServerConfig
from quire.server.errors import ApiError, error_response
from quire.server.middleware import wrap
from quire.server.state import ServerState

ROUTES = ("health", "metrics", "models", "completions", "chat", "responses", "embeddings", "tokenize", "trace")
ERRORS = (ApiError, QuireError, EngineUnavailable, RequestTimeout, RequestValidationError, HTTPException)


def build_app(engine: EngineClient, config: ServerConfig | None = None) -> FastAPI:
    """An ASGI application that serves ``engine``. It connects on startup and lets go of it on shutdown."""
    state = ServerState(engine, config or ServerConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.close()
        if state.tracing is not None:
            state.tracing.close()

    app = FastAPIOffline(redoc_url=None, title="quire", version=__version__, lifespan=lifespan)
    app.state.quire = state
    for name in ROUTES:
        app.include_router(importlib.import_module(f"quire.server.routes.{name}").router)
    for error in ERRORS:
        app.add_exception_handler(error, error_response)
    wrap(app, state)
    return app
