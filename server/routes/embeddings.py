"""/v1/embeddings: vectors from the decoder's hidden states. They are those of ``LLM.embed``."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.reference.control.errors import RequestError
from quire.reference.outputs import RequestOutput
from quire.server.errors import place
from quire.server.prompts import completion_prompts
from quire.server.protocol.common import documented, usage
from quire.server.protocol.embeddings import EmbeddingList, EmbeddingRequest
from quire.server.state import ServerState
from quire.server.stream import all_admitted, answer, final_outputs

router = APIRouter()


@router.post("/v1/embeddings", responses=documented(EmbeddingList, "the vectors"))
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector for each text or list of token ids."""
    return await answer(request, embed(ServerState.of(request), body))


async def embed(state: ServerState, body: EmbeddingRequest) -> dict[str, Any]:
    """The response. If one input is refused, none runs."""
    model = state.check_model(body.model)
    if None not in (body.normalize, body.use_activation) and body.normalize != body.use_activation:
        raise RequestError("normalize", body.normalize, f"use_activation={body.use_activation}", "Give one of the two")
    params = body.pooling_params()
    limit = kept_tokens(state, body)
    prompts = await completion_prompts(
        state.engine.assets, body.input, add_special_tokens=body.add_special_tokens is not False, field="input"
    )
    generations = await all_admitted(
        state.add(
            shortened(token_ids, limit, body.truncation_side),
            params,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
            names={"prompt_token_ids": place("input", number, len(prompts))},
        )
        for number, (_, token_ids) in enumerate(prompts)
    )
    outputs = await final_outputs(generations)
    return {
        "id": f"embd-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": encoded(output, body.encoding_format)}
            for index, output in enumerate(outputs)
        ],
        "usage": usage(
            sum(len(output.prompt_token_ids) for output in outputs),
            0,
            sum(output.num_cached_tokens for output in outputs),
        ),
    }


def kept_tokens(state: ServerState, body: EmbeddingRequest) -> int | None:
    """How many tokens of each input are kept at most; None = all."""
    limit = body.truncate_prompt_tokens
    if limit is None:
        if body.truncation_side is not None:
            raise RequestError(
                "truncation_side", body.truncation_side, "nothing is truncated", "Give truncate_prompt_tokens too"
            )
        return None
    if limit == 0:
        raise RequestError("truncate_prompt_tokens", 0, "nothing would be left", "Give at least 1, or -1")
    return state.engine.facts().max_model_len if limit == -1 else limit


def shortened(token_ids: list[int], limit: int | None, side: str | None) -> list[int]:
    """The first ``limit`` tokens; with ``side`` "left", which is the side that goes, the last ones."""
    if limit is None or len(token_ids) <= limit:
        return token_ids
    return token_ids[-limit:] if side == "left" else token_ids[:limit]


def encoded(output: RequestOutput, encoding_format: str | None) -> str | list[float]:
    """The vector as it is sent. It comes from the engine as little-endian float32, which is what base64 is of."""
    assert output.embedding is not None
    if encoding_format == "base64":
        return base64.b64encode(output.embedding).decode()
    numbers: list[float] = np.frombuffer(output.embedding, "<f4").tolist()
    return numbers
