"""For operators: /metrics for Prometheus, and /reset_prefix_cache."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from quire.server.state import ServerState

router = APIRouter()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(ServerState.of(request).metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.post("/reset_prefix_cache", response_class=Response)
async def reset_prefix_cache(request: Request) -> Response:
    """Forget all cached prefixes; answers with an empty body once it is done. Running requests are not disturbed."""
    await ServerState.of(request).engine.reset_prefix_cache()
    return Response()
