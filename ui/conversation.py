"""A conversation as data: its turns, what is sent of them, what the page shows, what can be exported.

A turn is a dict, so that it can be exported as it is: ``role`` and ``content``, and for the assistant also

    tool_calls     functions that it called, in OpenAI's form; the next thing said is the first call's result
    others         further answers, when ``n`` asked for several: shown, never sent
    tokens         the answer's tokens, ``Token`` as dicts
    measured       counts and times in words
    finish_reason  the server's, or "stopped" (by the person), or "broken off" (by an error)
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from quire.ui.client import Answer, Token
from quire.ui.shared import measured

Turn = dict[str, Any]


def messages(turns: list[Turn], system: str) -> list[dict[str, Any]]:
    """The conversation as the server wants it."""
    found: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        message = {"role": turn["role"], "content": turn["content"]}
        if turn.get("tool_calls"):
            message |= {"tool_calls": turn["tool_calls"], "content": turn["content"] or None}
        if "tool_call_id" in turn:
            message["tool_call_id"] = turn["tool_call_id"]
        found.append(message)
    return found


def said(turns: list[Turn], text: str) -> Turn:
    """What the person said next: behind a tool call it is the tool's result, else a message."""
    calls = turns[-1].get("tool_calls") if turns else None
    if calls:
        return {"role": "tool", "content": text, "tool_call_id": calls[0]["id"]}
    return {"role": "user", "content": text}


def answered(answer: Answer, finish_reason: str | None = None) -> Turn:
    """The turn that an answer makes, finished or not."""
    first, *others = answer.choices
    turn: Turn = {"role": "assistant", "content": first.text}
    if first.reasoning:
        turn["reasoning"] = first.reasoning
    if first.calls:
        turn["tool_calls"] = first.calls
    if others:
        turn["others"] = [choice.text for choice in others]
    if first.tokens:
        turn["tokens"] = [asdict(token) for token in first.tokens]
    turn["measured"] = measured(answer)
    turn["finish_reason"] = finish_reason or first.finish_reason
    return turn


def tokens(turn: Turn) -> list[Token]:
    """The tokens of a turn; empty where none were recorded."""
    return [Token(**token) for token in turn.get("tokens", ())]


def bubbles(turns: list[Turn]) -> tuple[list[dict[str, Any]], list[int]]:
    """What ``gr.Chatbot`` shows, and for each of its messages which turn it is of."""
    shown: list[dict[str, Any]] = []
    places: list[int] = []

    def show(index: int, role: str, content: str, title: str | None = None) -> None:
        shown.append({"role": role, "content": content} | ({"metadata": {"title": title}} if title else {}))
        places.append(index)

    for i, turn in enumerate(turns):
        if turn["role"] == "tool":
            show(i, "user", f"The tool's result: {turn['content']}")
            continue
        if turn.get("reasoning"):
            show(i, "assistant", turn["reasoning"], "Reasoning")
        if turn["content"] or not turn.get("tool_calls"):
            show(i, turn["role"], turn["content"])
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            show(i, "assistant", function["arguments"], f"Calls {function['name']}")
        for number, other in enumerate(turn.get("others", ()), 2):
            show(i, "assistant", other, f"Answer {number}")
    return shown, places
