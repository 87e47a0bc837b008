"""The items of /v1/responses on their way in: kept as plain objects, and read as the messages of a conversation.

An item that a client sends, and one that a response ended with, become the same object. So it makes no difference
whether a conversation comes whole or behind a ``previous_response_id``.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from quire.reference.control.errors import RequestError
from quire.server.conversation import arguments
from quire.server.protocol.chat import FunctionCall, Message, MessageToolCall
from quire.server.protocol.responses import (
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    ReasoningItem,
)

Item = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id as OpenAI's look: "msg_…", "fc_…", "rs_…", "resp_…"."""
    return f"{prefix}_{uuid.uuid4().hex}"


def input_items(given: str | Sequence[Any]) -> list[Item]:
    """What a client gives as input, as items with ids."""
    if isinstance(given, str):
        return [_whole("message", new_id("msg"), role="user", content=[_text("input_text", given)])]
    return [_item(item) for item in given]


def _item(item: Any) -> Item:
    match item:
        case MessageItem():
            kind = "output_text" if item.role == "assistant" else "input_text"
            if isinstance(item.content, str):
                content = [_text(kind, item.content)]
            else:
                content = [
                    {"type": "refusal", "refusal": part.said()} if part.type == "refusal" else _text(kind, part.said())
                    for part in item.content
                ]
            return _whole("message", item.id or new_id("msg"), role=item.role, content=content)
        case FunctionCallItem():
            call = _whole("function_call", item.id or new_id("fc"), call_id=item.call_id, name=item.name)
            return call | {"arguments": item.arguments, "status": item.status or "completed"}
        case FunctionCallOutputItem():
            output = item.output if isinstance(item.output, str) else "\n".join(part.said() for part in item.output)
            return _whole("function_call_output", item.id or new_id("fco"), call_id=item.call_id, output=output)
        case ReasoningItem():
            content = [{"type": "reasoning_text", "text": part.text} for part in item.content or item.summary]
            return _whole("reasoning", item.id or new_id("rs"), summary=[], content=content)
    raise AssertionError(item)


def _whole(kind: str, item_id: str, **fields: Any) -> Item:
    return {"type": kind, "id": item_id, **fields, "status": "completed"}


def _text(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text} | ({"annotations": []} if kind == "output_text" else {})


def messages(items: Sequence[Item], num_before: int) -> list[Message]:
    """The items as turns. The first ``num_before`` are those of previous responses.

    What the model said in one go is one turn: reasoning, text and calls. Raises ``RequestError`` for a result without
    its call, and for arguments that are no JSON object.
    """
    turns: list[Message] = []
    calls: set[str] = set()
    for number, item in enumerate(items):
        where = f"input.{number - num_before}" if number >= num_before else "previous_response_id"
        match item["type"]:
            case "message" if item["role"] == "assistant":
                turn = _assistant(turns, begun=lambda turn: turn.content is not None and not turn.tool_calls)
                turn.content = (turn.content or "") + _said(item)  # type: ignore[operator]  # never parts here
            case "message":
                turns.append(Message(role=item["role"], content=_said(item)))
            case "reasoning":
                turn = _assistant(turns, begun=lambda turn: turn.content is not None or bool(turn.tool_calls))
                turn.reasoning_content = (turn.reasoning_content or "") + "".join(p["text"] for p in item["content"])
            case "function_call" if item["status"] == "completed":
                arguments(item["arguments"], f"{where}.arguments")
                turn = _assistant(turns, begun=lambda turn: False)
                function = FunctionCall(name=item["name"], arguments=item["arguments"])
                turn.tool_calls = [*(turn.tool_calls or ()), MessageToolCall(id=item["call_id"], function=function)]
                calls.add(item["call_id"])
            case "function_call_output":
                if item["call_id"] not in calls:
                    raise RequestError(
                        f"{where}.call_id", item["call_id"], "no function_call before it has this id",
                        "Give the call before its output, as item or by previous_response_id",
                    )  # fmt: skip
                turns.append(Message(role="tool", content=item["output"], tool_call_id=item["call_id"]))
    return turns


def _assistant(turns: list[Message], *, begun: Any) -> Message:
    """The assistant's turn that goes on, or a new one if that has ``begun`` what comes now."""
    if not turns or turns[-1].role != "assistant" or begun(turns[-1]):
        turns.append(Message(role="assistant"))
    return turns[-1]


def _said(item: Item) -> str:
    return "\n".join(part.get("text") or part.get("refusal") or "" for part in item["content"])


def ends(turns: Sequence[Message]) -> list[list[Message]]:
    """Ever shorter ends of a conversation, for one that is too long: each begins with what a user says.

    System messages at the very beginning stay.
    """
    head = next((i for i, turn in enumerate(turns) if turn.role not in ("system", "developer")), len(turns))
    begins = [i for i in range(head + 1, len(turns)) if turns[i].role == "user"]
    return [[*turns[:head], *turns[i:]] for i in begins]


def page(items: Sequence[Item], *, after: str | None, limit: int, order: str) -> dict[str, Any]:
    """A page of items as OpenAI lists them. Raises ``RequestError`` if there is no item ``after``."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    begin = 0
    if after is not None:
        found = [number for number, item in enumerate(ordered) if item["id"] == after]
        if not found:
            raise RequestError("after", after, "no such item", "Give the last_id of the page before")
        begin = found[0] + 1
    data = ordered[begin : begin + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": begin + limit < len(ordered),
    }
