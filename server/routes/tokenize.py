"""/tokenize and /detokenize: between texts and token ids, as the model sees them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from quire.reference.control.errors import RequestError
from quire.reference.detokenizer import token_decoder
from quire.server.conversation import ToolUse, functions_of, rendered
from quire.server.prompts import THREAD_FROM, tokenize
from quire.server.protocol.common import documented
from quire.server.protocol.tokenize import DetokenizeRequest, Text, TokenizeRequest, Tokens
from quire.server.state import ServerState
from quire.server.stream import json_response

router = APIRouter()


@router.post("/tokenize", responses=documented(Tokens, "the token ids"))
async def tokenize_route(body: TokenizeRequest, request: Request) -> Response:
    """The token ids of a text or of a conversation."""
    state = ServerState.of(request)
    state.check_model(body.model)
    max_model_len = state.engine.facts().max_model_len
    tokens = await token_ids(state, body)
    strings = state.engine.assets.get_tokenizer().convert_ids_to_tokens(tokens) if body.return_token_strs else None
    return json_response(
        {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens, "token_strs": strings}
    )


async def token_ids(state: ServerState, body: TokenizeRequest) -> list[int]:
    """The tokens of whichever of the two forms was given."""
    if body.messages is None:
        if body.prompt is None:
            raise RequestError("prompt", None, "nothing to tokenize", "Give prompt or messages")
        for name in body.OF_CHAT:
            if getattr(body, name) is not None:
                raise RequestError(
                    name, getattr(body, name), "has no effect on a prompt", "Give messages, or leave it out"
                )
        special = body.add_special_tokens is not False
        if not body.prompt:  # no prompt for the engine, but a text like any other
            return list(state.engine.assets.get_tokenizer().encode("", add_special_tokens=special))
        return await tokenize(state.engine.assets, body.prompt, add_special_tokens=special)
    if body.prompt is not None:
        raise RequestError("prompt", body.prompt, "messages are given too", "Give one of the two")
    functions = functions_of(body.tools)
    _, tokens = await rendered(
        state,
        body.messages,
        ToolUse(functions, "auto" if functions else "none"),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
        add_special_tokens=bool(body.add_special_tokens),
    )
    return tokens


@router.post("/detokenize", responses=documented(Text, "the text"))
async def detokenize_route(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids."""
    state = ServerState.of(request)
    state.check_model(body.model)
    tokenizer = state.engine.assets.get_tokenizer()
    size = len(tokenizer)
    for position, token in enumerate(body.tokens):
        if not 0 <= token < size:
            raise RequestError(
                "tokens", token, f"no token of this model, at position {position}", f"Give ids from 0 to {size - 1}"
            )
    decode = token_decoder(tokenizer, skip_special_tokens=False)
    text: Any = decode(body.tokens) if len(body.tokens) < THREAD_FROM else await asyncio.to_thread(decode, body.tokens)
    return json_response({"prompt": text})
