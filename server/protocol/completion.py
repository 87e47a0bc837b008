"""/v1/completions: its request, and the documentation of its response."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from quire.server.protocol.common import PromptInput, StreamOptions, Usage
from quire.server.protocol.sampling import SamplingFields


class CompletionRequest(SamplingFields):
    """OpenAI's fields and vLLM's."""

    REFUSED: ClassVar = {"suffix": ("the models served here complete at the end only", "Leave it out")}

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    prompt: PromptInput = Field(description="text, token ids, or a list of either")
    max_tokens: int | None = Field(16, ge=0, description="0 only with echo")
    echo: bool | None = Field(None, description="repeat the prompt before the completion")
    logprobs: int | None = Field(None, description="log-probabilities of so many likeliest tokens at each position")
    best_of: int | None = Field(None, description="generate so many and return the n likeliest")
    stream: bool | None = Field(None, description="send what is new as server-sent events")
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = Field(None, description="put the begin token before text prompts; default true")


class CompletionLogprobs(BaseModel):
    """One entry per token. ``top_logprobs`` is null with logprobs=0."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One completion of one prompt; their ``index`` counts through all prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "abort", "error"] | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[Any] | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(BaseModel):
    """The response; with ``stream`` each event is one of these with what is new."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
