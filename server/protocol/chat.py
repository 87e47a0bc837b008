"""/v1/chat/completions: its request, and the documentation of its response."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from quire.server.protocol.base import RequestModel, accepted
from quire.server.protocol.common import StreamOptions, Usage
from quire.server.protocol.sampling import SamplingFields

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ContentPart(RequestModel):
    """A part of a message's content: text. The models served here read nothing else."""

    REFUSED: ClassVar = dict.fromkeys(
        ("image_url", "input_audio", "file", "video_url"),
        ("the models served here read text only", "Leave the part out"),
    )

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class FunctionCall(RequestModel):
    """What the assistant called; ``arguments`` is JSON text."""

    name: str
    arguments: str = "{}"


class MessageToolCall(RequestModel):
    """A call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestModel):
    """One turn of the conversation."""

    REFUSED: ClassVar = {
        "function_call": ("OpenAI replaced it by tool_calls", "Give tool_calls"),
        "audio": ("the models served here read text only", "Leave it out"),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(RequestModel):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, accepted("a forced choice is always held to the schema; with auto the model writes freely")
    ] = None


class Tool(RequestModel):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(RequestModel):
    """Which function."""

    name: str


class NamedToolChoice(RequestModel):
    """The model must call this function."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(RequestModel):
    """A schema that the answer follows; ``strict`` or not, it does."""

    name: Annotated[Name, accepted("the schema says it all; the model is not told")]
    description: Annotated[str | None, accepted("the schema says it all; the model is not told")] = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: Annotated[bool | None, accepted("the answer is always held to the schema")] = None


class ResponseFormat(RequestModel):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(SamplingFields):
    """OpenAI's fields and vLLM's."""

    REFUSED: ClassVar = {
        "functions": ("OpenAI replaced it by tools", "Give tools"),
        "function_call": ("OpenAI replaced it by tool_choice", "Give tool_choice"),
        "audio": ("the models served here write text only", "Leave it out"),
        "web_search_options": ("this server has no access to the web", "Leave it out"),
        "moderation": ("this server moderates nothing", "Leave it out"),
    }

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    messages: list[Message] = Field(description="the conversation", min_length=1)
    max_completion_tokens: int | None = Field(None, description="default: as many as the context leaves")
    max_tokens: int | None = Field(None, description="older name of max_completion_tokens")
    logprobs: bool | None = Field(None, description="log-probabilities of the answer's tokens")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and of so many likeliest ones at each position")
    stream: bool | None = Field(None, description="send what is new as server-sent events")
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = Field(None, description="functions that the model may call")
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="default: auto with tools, none without"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    response_format: ResponseFormat | None = Field(None, description="text, any JSON object, or JSON by a schema")
    modalities: list[Literal["text"]] | None = Field(None, description="text is all there is")
    metadata: Annotated[dict[str, str] | None, accepted("nothing is stored here")] = None
    store: Annotated[bool | None, accepted("nothing is stored here")] = None
    prediction: Annotated[dict[str, Any] | None, accepted("it could only change the speed")] = None
    prompt_cache_key: Annotated[str | None, accepted("every prompt is cached by its content")] = None
    prompt_cache_retention: Annotated[str | None, accepted("the cache keeps what fits")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, accepted("the cache keeps what fits")] = None
    safety_identifier: Annotated[str | None, accepted("there are no accounts")] = None
    service_tier: Annotated[str | None, accepted("all requests are equal, but for priority")] = None
    reasoning_effort: str | None = Field(None, description="handed to the chat template as reasoning_effort")
    verbosity: str | None = Field(None, description="handed to the chat template as verbosity")
    # vLLM's
    add_generation_prompt: bool | None = Field(None, description="let the assistant speak next; default true")
    continue_final_message: bool | None = Field(None, description="go on with the last message instead")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables for the chat template")


class Called(BaseModel):
    """A called function."""

    name: str
    arguments: str


class ResponseToolCall(BaseModel):
    """A call."""

    id: str
    type: Literal["function"]
    function: Called


class ResponseMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ResponseToolCall] | None = None


class ChatChoice(BaseModel):
    """One of ``n`` answers."""

    index: int
    message: ResponseMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "abort", "error"]
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The response. With ``stream`` the events are OpenAI's chat.completion.chunk objects."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[Any] | None = None
    prompt_token_ids: list[int] | None = None
