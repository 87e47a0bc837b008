"""A chat request on its way to the engine and back: messages to a prompt, tools to parsers and schemas.

/v1/chat/completions and /v1/responses are two ways of writing down what is in here.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.reference.control.errors import RequestError
from quire.reference.control.structured import StructuredOutputsParams
from quire.reference.outputs import CompletionOutput
from quire.server.errors import named
from quire.server.parsers import Delta, Parsed, Parser, PlainParser
from quire.server.parsers.registry import forced_parser, forced_schema
from quire.server.prompts import chat_prompt
from quire.server.protocol.chat import Message, Tool
from quire.server.state import ServerState

# Variables of a chat template that have fields of their own, or are none of a client's business.
SAID_ELSEWHERE = (
    "messages", "conversation", "tools", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
)  # fmt: skip


@dataclass
class ToolUse:
    """What a request says about tools.

    functions  their descriptions {"name", "description", "parameters"}
    choice     "none", "auto", "required", or the name of the function that must be called
    parallel   whether there may be several calls
    """

    functions: list[dict[str, Any]] = field(default_factory=list)
    choice: str = "none"
    parallel: bool = True

    def __post_init__(self) -> None:
        names = [function["name"] for function in self.functions]
        if len(set(names)) < len(names):
            raise RequestError("tools", names, "two functions of one name", "Give each a name of its own")
        if self.choice == "none":
            return
        if not names:
            raise RequestError("tool_choice", self.choice, "there are no tools", "Give tools, or leave tool_choice out")
        if self.forced and self.choice != "required" and self.choice not in names:
            raise RequestError(
                "tool_choice", self.choice, "no such function among the tools", f"Name one of {', '.join(names)}"
            )

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice not in ("none", "auto")

    @property
    def function(self) -> str | None:
        """The one function that must be called."""
        return self.choice if self.forced and self.choice != "required" else None

    def for_template(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates know them; none where the model may not call any."""
        if self.choice == "none" or not self.functions:
            return None
        return [{"type": "function", "function": function} for function in self.functions]


def tool_use(
    functions: list[dict[str, Any]], choice: str | None, *, named: str | None, parallel: bool | None
) -> ToolUse:
    """A request's functions and its choice among them: a word for it, or the name of the one that must be called."""
    if named in ("none", "auto", "required"):
        raise RequestError("tool_choice", named, "not the name of a function", "Give the choice itself as a string")
    return ToolUse(functions, named or choice or ("auto" if functions else "none"), parallel is not False)


@dataclass
class Form:
    """How an answer is to be written and read: constraint, parser, and whether special tokens must stay in the text."""

    structured: StructuredOutputsParams | None
    new_parser: Callable[[], Parser]
    special_tokens: bool
    new_call_id: Callable[[], str]

    def fixed(self) -> dict[str, Any]:
        """The sampling parameters that follow from it, whatever the client says."""
        found: dict[str, Any] = {}
        if self.structured is not None:
            found["structured_outputs"] = self.structured
        if self.special_tokens:
            found["skip_special_tokens"] = False
        return found


def form(state: ServerState, tools: ToolUse, structured: StructuredOutputsParams | None) -> Form:
    """The form of an answer that may or must call tools, or that has a form of its own."""
    tool_format, reasoning = state.tool_format, state.reasoning
    id_length = None if tool_format is None else tool_format.id_length

    def new_call_id() -> str:
        return random_id(id_length) if id_length else f"call_{random_id(24)}"

    if tools.forced:
        if structured is not None:
            raise RequestError(
                "tool_choice", tools.choice, "a call is forced, and the answer has a form of its own",
                "Leave tool_choice or the answer's form out",
            )  # fmt: skip
        schema = forced_schema(tools.functions, tools.function, parallel=tools.parallel)
        return Form(StructuredOutputsParams(json=schema), lambda: forced_parser(tools.function), False, new_call_id)
    if tools.choice == "auto":
        if structured is not None:
            raise RequestError(
                "tool_choice", "auto", "an answer of a given form cannot be a tool call",
                'Set tool_choice to "none", or leave the answer\'s form out',
            )  # fmt: skip
        if tool_format is None:
            raise RequestError(
                "tools", [f["name"] for f in tools.functions], "this server does not know how its model calls tools",
                "Start it with --tool-call-parser, or force the choice",
            )  # fmt: skip
        make = tool_format.make
        if reasoning is None:
            return Form(None, make, tool_format.special_tokens, new_call_id)
        return Form(None, lambda: reasoning(make()), tool_format.special_tokens, new_call_id)
    if reasoning is None or structured is not None:
        return Form(structured, PlainParser, False, new_call_id)
    return Form(structured, lambda: reasoning(PlainParser()), False, new_call_id)


def functions_of(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """The descriptions of the functions among ``tools``."""
    return [tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools or ()]


def wanted_form(
    field: str, kind: str | None, schema: dict[str, Any] | None, own: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    """The form that an answer must have, by OpenAI's ``field`` (its kind and schema) or by one of vLLM's names."""
    if kind is None or kind == "text":
        return own
    if own is not None:
        raise RequestError(field, kind, "structured_outputs is given too", "Give one of the two")
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    with named({"structured_outputs.json": field}):
        return StructuredOutputsParams(json={} if schema is None else schema)


@dataclass
class Reader:
    """Reads one completion as it comes. ``parsed`` is all that it has said so far.

    Calls after the first one are dropped where the client wants only one.
    """

    parser: Parser
    parallel: bool
    parsed: Parsed = field(default_factory=Parsed)

    def read(self, completion: CompletionOutput) -> list[Delta]:
        """What the new text means."""
        deltas = self.parser.feed(completion.text)
        if completion.finish_reason is not None:
            deltas += self.parser.finish()
        if not self.parallel:
            deltas = [delta for delta in deltas if not delta.call]
        for delta in deltas:
            self.parsed.add(delta)
        return deltas


async def rendered(
    state: ServerState,
    messages: Sequence[Message],
    tools: ToolUse,
    *,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    reasoning_effort: str | None = None,
    verbosity: str | None = None,
    chat_template_kwargs: dict[str, Any] | None,
    add_special_tokens: bool = False,
) -> tuple[str, list[int]]:
    """A conversation as a prompt: its text, and its token ids. By default the assistant speaks next."""
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message", True, "add_generation_prompt begins a new message", "Set one of the two to false"
        )
    further = {"reasoning_effort": reasoning_effort, "verbosity": verbosity}
    for name in chat_template_kwargs or ():
        if name in SAID_ELSEWHERE:
            raise RequestError("chat_template_kwargs", name, "not for the client to say here", "Leave it out")
    return await chat_prompt(
        state.engine.assets,
        for_template(messages, state.chat_template),
        tools=tools.for_template(),
        chat_template=state.config.chat_template and state.chat_template,
        add_generation_prompt=add_generation_prompt is not False and not continue_final_message,
        continue_final_message=bool(continue_final_message),
        chat_template_kwargs={k: v for k, v in further.items() if v is not None} | (chat_template_kwargs or {}),
        add_special_tokens=add_special_tokens,
    )


def random_id(length: int) -> str:
    """Letters and digits that nobody will hit upon again."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def for_template(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Messages as Hugging Face chat templates know them: content as text, arguments as objects."""
    found = []
    for number, message in enumerate(messages):
        role: str = message.role
        if role == "developer" and "developer" not in template:
            role = "system"  # what OpenAI's models call it by a newer name
        said = (message.content, message.tool_calls, message.refusal, message.reasoning_content, message.reasoning)
        if all(part is None for part in said):
            raise RequestError(f"messages.{number}.content", None, "missing", "Say what the message says")
        turn: dict[str, Any] = {"role": role, "content": text_of(message)}
        for name in ("name", "tool_call_id"):
            if getattr(message, name) is not None:
                turn[name] = getattr(message, name)
        reasoning = message.reasoning_content or message.reasoning
        if reasoning is not None:
            turn["reasoning_content"] = reasoning
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": arguments(
                            call.function.arguments, f"messages.{number}.tool_calls.{i}.function.arguments"
                        ),
                    },
                }
                for i, call in enumerate(message.tool_calls)
            ]
        found.append(turn)
    return found


def text_of(message: Message) -> str:
    """A message's content as one text, its parts on lines of their own."""
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        return message.refusal or ""
    return "\n".join(part.text or part.refusal or "" for part in message.content)


def arguments(text: str, where: str) -> dict[str, Any]:
    """The arguments of a call that the client reports back."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(where, text, "not a JSON object", "Give the arguments as JSON text")
    return value
