"""What requests and responses of several endpoints have in common."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, Field

from quire.reference.outputs import CompletionOutput, Logprob, RequestOutput
from quire.reference.tokenizer import token_bytes
from quire.server.protocol.base import RequestModel, accepted

PromptInput: TypeAlias = str | list[int] | list[str] | list[list[int]]


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="a last event with the usage of the whole request")
    continuous_usage_stats: bool | None = Field(None, description="usage so far in every event")
    include_obfuscation: Annotated[
        bool | None, accepted("events are not padded here, so there is nothing to turn off")
    ] = None


class PromptTokensDetails(BaseModel):
    """How many of the prompt's tokens came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Speculative decoding: drafted tokens that the model agreed with, and that it did not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    """Tokens of a request, all of its prompts and completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


def usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, drafts: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """``Usage`` as it is sent. ``drafts``: how many were verified, and how many of these accepted."""
    found: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    drafted, accepted = drafts
    if drafted:
        found["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        }
    return found


def documented(model: type[BaseModel], description: str, *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route: its answer, which may also come as an event stream, and errors."""
    events: dict[str, Any] = {"content": {"text/event-stream": {}}} if streams else {}
    return {
        200: {"model": model, "description": description, **events},
        "4XX": {"model": ErrorBody, "description": "the request cannot be served; the error object says why"},
        "5XX": {"model": ErrorBody, "description": "the server cannot serve now"},
    }


def prompt_logprobs_json(output: RequestOutput) -> list[dict[str, Any] | None]:
    """vLLM's form: per position token id -> log-probability, rank and text; None for the first token."""
    return [
        None if entry is None else {str(token): logprob._asdict() for token, logprob in entry.items()}
        for entry in output.prompt_logprobs or []
    ]


def logprobs_json(tokenizer: Any, completion: CompletionOutput, top: int) -> list[dict[str, Any]]:
    """OpenAI's newer form of log-probabilities: an object per token, with the ``top`` likeliest ones in it.

    A token that speculative decoding drafted says so: ``"drafted": true``.
    """

    def token(token_id: int, logprob: Logprob) -> dict[str, Any]:
        text = logprob.decoded_token or ""
        own = token_bytes(tokenizer, token_id, text)
        return {"token": text, "logprob": logprob.logprob, "bytes": None if own is None else list(own)}

    found = []
    for token_id, entry, drafted in zip(completion.token_ids, completion.logprobs or (), completion.drafted):
        likeliest = [token(i, p) for i, p in entry.items() if p.rank is not None and p.rank <= top]
        found.append(token(token_id, entry[token_id]) | {"top_logprobs": likeliest})
        if drafted:
            found[-1]["drafted"] = True
    return found
