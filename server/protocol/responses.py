"""/v1/responses: its request with the items of a conversation, and the documentation of its response."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, model_validator

from quire.reference.control.errors import RequestError
from quire.server.protocol.base import RequestModel, accepted
from quire.server.protocol.chat import Function, Name
from quire.server.protocol.sampling import SamplingFields

Status = Annotated[
    Literal["in_progress", "completed", "incomplete"] | None, accepted("what counts is what the item says")
]
NO_PROGRAMS = ("there are no programs here that call tools", "Leave it out")
NO_CHOICE = "a response is one answer, sampled"


# --- items of the conversation ----------------------------------------------------------------------------------------


class Part(RequestModel):
    """A part of a message's or a result's content: text."""

    REFUSED: ClassVar = dict.fromkeys(
        ("image_url", "file_id", "file_data", "file_url", "input_audio"),
        ("the models served here read text only", "Leave the part out"),
    )

    type: Literal["input_text", "output_text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: Annotated[list[Any] | None, accepted("the model reads the text")] = None
    logprobs: Annotated[list[Any] | None, accepted("the model reads the text")] = None
    parsed: Annotated[Any, accepted("the openai SDK's own reading of the text")] = None
    prompt_cache_breakpoint: Annotated[dict[str, Any] | None, accepted("every prompt is cached by its content")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Part:
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise RequestError(name, None, f"missing in a part of type {self.type}", f"Give the {name}")
        return self

    def said(self) -> str:
        return (self.refusal if self.type == "refusal" else self.text) or ""


class MessageItem(RequestModel):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    id: str | None = Field(None, description="how /input_items names it; default: a new one")
    status: Status = None
    phase: Annotated[str | None, accepted("chat templates do not know it")] = None


class FunctionCallItem(RequestModel):
    """A call that the model made; ``arguments`` is JSON text."""

    REFUSED: ClassVar = {"namespace": ("functions have one name here", "Leave it out")}

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = Field(None, description="how /input_items names it; default: a new one")
    status: Literal["in_progress", "completed", "incomplete"] | None = Field(
        None, description="a call that is incomplete is left out"
    )
    caller: Annotated[dict[Literal["type"], Literal["direct"]] | None, accepted("there is no other")] = None


class FunctionCallOutputItem(RequestModel):
    """What a call returned."""

    REFUSED: ClassVar = {"namespace": ("functions have one name here", "Leave it out")}

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = Field(None, description="how /input_items names it; default: a new one")
    name: Annotated[str | None, accepted("the call has it")] = None
    status: Status = None
    caller: Annotated[dict[Literal["type"], Literal["direct"]] | None, accepted("there is no other")] = None


class ReasoningPart(RequestModel):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(RequestModel):
    """What the model thought before it answered."""

    REFUSED: ClassVar = {"encrypted_content": ("nobody here has the key", "Give content, or leave the item out")}

    type: Literal["reasoning"]
    id: str | None = Field(None, description="how /input_items names it; default: a new one")
    summary: list[ReasoningPart] = Field([], description="read where there is no content")
    content: list[ReasoningPart] | None = None
    status: Status = None


ITEMS = ["message", "function_call", "function_call_output", "reasoning"]


def _kind(item: Any) -> str:
    """The tag of an item; a message need not say that it is one. In brackets, so that no error's path shows it."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return f"<{kind or 'message'}>"


def _known_item(item: Any) -> Any:
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is not None and kind not in ITEMS:
        remedy = "Give the item itself" if kind == "item_reference" else f"Give items of type {', '.join(ITEMS)}"
        raise RequestError("type", kind, "this server has no such items", remedy)
    return item


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(_kind),
    BeforeValidator(_known_item),
]


# --- the request ------------------------------------------------------------------------------------------------------


class FunctionTool(Function):
    """A function that the model may call."""

    REFUSED: ClassVar = {
        "allowed_callers": NO_PROGRAMS,
        "output_schema": NO_PROGRAMS,
        "defer_loading": ("all tools are in the prompt", "Leave it out"),
    }

    type: Literal["function"]

    def function(self) -> dict[str, Any]:
        """Its description as chat templates have it."""
        return self.model_dump(include={"name", "description", "parameters"}, exclude_none=True)


def _own_tool(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in (None, "function"):
        raise RequestError("type", kind, "this server runs no tools itself", "Give functions, and run them yourself")
    return tool


class FunctionChoice(RequestModel):
    """The model must call this function."""

    type: Literal["function"]
    name: str


class TextFormat(RequestModel):
    """The form of the answer; ``strict`` or not, it follows the schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[Name | None, accepted("the schema says it all; the model is not told")] = None
    description: Annotated[str | None, accepted("the schema says it all; the model is not told")] = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: Annotated[bool | None, accepted("the answer is always held to the schema")] = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise RequestError("schema", None, "missing", "Give the schema, beside its name")
        if self.type != "json_schema" and self.schema_ is not None:
            raise RequestError("schema", self.schema_, f"the type is {self.type}", 'Set type to "json_schema"')
        return self


class TextConfig(RequestModel):
    """How the text shall be."""

    format: TextFormat | None = None
    verbosity: str | None = Field(None, description="handed to the chat template as verbosity")


class Reasoning(RequestModel):
    """How the model shall reason."""

    effort: str | None = Field(None, description="handed to the chat template as reasoning_effort")
    summary: Annotated[str | None, accepted("reasoning comes as it is, and is not summarized")] = None
    generate_summary: Annotated[str | None, accepted("reasoning comes as it is, and is not summarized")] = None
    context: Literal["auto"] | None = Field(None, description="which turns' reasoning counts is the chat template's")
    mode: Literal["standard"] | None = Field(None, description="there is one")


class ResponseStreamOptions(RequestModel):
    """Options of a stream."""

    include_obfuscation: Annotated[
        bool | None, accepted("events are not padded here, so there is nothing to turn off")
    ] = None


class ResponsesRequest(SamplingFields):
    """OpenAI's fields and vLLM's."""

    REFUSED: ClassVar = {
        "conversation": ("this server has no conversation objects", "Give previous_response_id, or all as input"),
        "prompt": ("this server stores no prompt templates", "Give instructions and input"),
        "context_management": ("this server does not compact conversations", "Set truncation, or shorten the input"),
        "moderation": ("this server moderates nothing", "Leave it out"),
        "n": (NO_CHOICE, "Send the request several times"),
        "use_beam_search": (NO_CHOICE, "Ask /v1/chat/completions"),
        "length_penalty": (NO_CHOICE, "Ask /v1/chat/completions"),
        "prompt_logprobs": ("a response has no place for them", "Ask /v1/chat/completions"),
        "return_token_ids": ("a response has no place for them", "Ask /v1/chat/completions"),
    }

    model: str | None = Field(None, description="one of /v1/models; default: the first")
    input: str | list[Item] = Field(description="a text, or items of a conversation")
    instructions: str | None = Field(None, description="a system message before everything else; not stored")
    previous_response_id: str | None = Field(None, description="go on behind this stored response")
    store: bool | None = Field(None, description="keep the response in memory; default true")
    metadata: dict[
        Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]
    ] | None = Field(None, max_length=16, description="given back with the response")  # fmt: skip
    max_output_tokens: int | None = Field(None, ge=1, description="default: as many as the context leaves")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: turns from the beginning are dropped where the context is too short"
    )
    text: TextConfig | None = Field(None, description="format: text, any JSON object, or JSON by a schema")
    reasoning: Reasoning | None = None
    tools: list[Annotated[FunctionTool, BeforeValidator(_own_tool)]] | None = Field(
        None, description="functions that the model may call"
    )
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = Field(
        None, description="default: auto with tools, none without"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None, description="message.output_text.logprobs; reasoning is never encrypted, so its content is there anyway"
    )
    top_logprobs: int | None = Field(None, ge=0, le=20, description="log-probabilities of so many likeliest tokens")
    stream: bool | None = Field(None, description="send typed events")
    stream_options: ResponseStreamOptions | None = None
    background: bool | None = Field(None, description="only false: responses are made while the client waits")
    max_tool_calls: Annotated[int | None, accepted("it limits built-in tools, of which there are none")] = None
    prompt_cache_key: Annotated[str | None, accepted("every prompt is cached by its content")] = None
    prompt_cache_retention: Annotated[str | None, accepted("the cache keeps what fits")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, accepted("the cache keeps what fits")] = None
    safety_identifier: Annotated[str | None, accepted("there are no accounts")] = None
    service_tier: Annotated[str | None, accepted("all requests are equal, but for priority")] = None
    # vLLM's
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables for the chat template")

    @model_validator(mode="after")
    def _possible(self) -> ResponsesRequest:
        if self.background:
            raise RequestError("background", True, "responses are made while the client waits", "Leave it out")
        if self.input == []:
            raise RequestError("input", [], "no items", "Give at least one item, or a text")
        return self


# --- questions about stored responses, and what is answered -----------------------------------------------------------

AS_MADE = ("a stored response is given back as it was made", "Leave it out")


class RetrieveQuery(RequestModel):
    """What may stand behind the question mark of GET /v1/responses/{id}."""

    REFUSED: ClassVar = dict.fromkeys(("include", "include[]", "starting_after"), AS_MADE)

    stream: Literal["false"] | None = Field(None, description="events are not stored")
    include_obfuscation: Annotated[str | None, accepted("it is an option of streams")] = None


class InputItemsQuery(RequestModel):
    """What may stand behind the question mark of GET /v1/responses/{id}/input_items."""

    REFUSED: ClassVar = dict.fromkeys(("include", "include[]"), AS_MADE)

    after: str | None = Field(None, description="begin behind the item of this id")
    limit: int = Field(20, ge=1, le=100, strict=False)
    order: Literal["asc", "desc"] = "desc"


class ResponseObject(BaseModel):
    """The response. With ``stream`` the events are OpenAI's, and this is in the first and in the last one."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    previous_response_id: str | None
    usage: dict[str, Any] | None


class InputItems(BaseModel):
    """A page of the items that a response was made from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A response has been forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
