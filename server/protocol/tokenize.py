"""/tokenize and /detokenize, which are vLLM's: requests, and the documentation of responses."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field

from quire.server.protocol.base import RequestModel
from quire.server.protocol.chat import Message, Tool


class TokenizeRequest(RequestModel):
    """A text as /v1/completions takes it, or a conversation as /v1/chat/completions does."""

    REFUSED: ClassVar = {
        "chat_template": ("a template is a program, and the server runs its own only", "Start it with --chat-template"),
        "mm_processor_kwargs": ("the models served here read text only", "Leave it out"),
    }
    OF_CHAT: ClassVar = ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    prompt: str | None = Field(None, description="a text, or else:")
    messages: list[Message] | None = Field(None, description="a conversation")
    add_special_tokens: bool | None = Field(
        None, description="put the begin token before it; default true for prompt, false for messages"
    )
    return_token_strs: bool | None = Field(None, description="add token_strs to the response")
    add_generation_prompt: bool | None = Field(
        None, description="with messages: let the assistant speak next; default true"
    )
    continue_final_message: bool | None = Field(None, description="with messages: go on with the last one instead")
    tools: list[Tool] | None = Field(None, description="with messages: functions that the model may call")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="with messages: further variables for the chat template"
    )


class Tokens(BaseModel):
    """The response. ``token_strs`` are the vocabulary's own names of the tokens; null if they were not asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(RequestModel):
    """Token ids."""

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    tokens: list[int] = Field(description="token ids")


class Text(BaseModel):
    """The response: their text, special tokens included."""

    prompt: str
