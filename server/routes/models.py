"""What is served here, and under which names: /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from quire.server.protocol.common import documented
from quire.server.protocol.models import Model, ModelList
from quire.server.state import ServerState

router = APIRouter()


@router.get("/v1/models", responses=documented(ModelList, "every name of the model"))
async def models(request: Request) -> dict[str, Any]:
    """The names that requests may give as ``model``."""
    state = ServerState.of(request)
    return {"object": "list", "data": [card(state, name) for name in state.model_names]}


@router.get("/v1/models/{model_id:path}", responses=documented(Model, "one name of the model"))
async def model(model_id: str, request: Request) -> dict[str, Any]:
    """One of these names. Names may contain slashes."""
    state = ServerState.of(request)
    return card(state, state.check_model(model_id))


def card(state: ServerState, name: str) -> dict[str, Any]:
    """OpenAI's model object, with vLLM's additions."""
    facts = state.engine.facts()
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "quire",
        "root": facts.name,
        "max_model_len": facts.max_model_len,
    }
