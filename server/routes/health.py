"""Is it alive, may it get traffic, and what is it: /health, /ready, /version."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from quire import __version__
from quire.server.state import ServerState

router = APIRouter()


@router.get("/health")
@router.get("/ready")
async def health(request: Request) -> JSONResponse:
    """200 while requests are served; 503, and why, while the engine starts, drains or is dead."""
    state = ServerState.of(request)
    status = "draining" if state.draining else state.engine.state
    ok = status == "ready"
    body = {"status": status} if ok or status == "draining" else {"status": status, "reason": state.engine.reason}
    return JSONResponse(body, 200 if ok else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of quire."""
    return {"version": __version__}
