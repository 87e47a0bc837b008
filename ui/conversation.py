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
from html import escape
from typing import Any

from quire.ui.client import Answer, Token
from quire.ui.shared import measured

Turn = dict[str, Any]

NOTHING_SAID = "Ask something, or try one of the examples below. It stays between this page and your server."


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


NAMES = {"user": "You", "assistant": "Model", "tool": "The tool's result"}


def log_html(turns: list[Turn], *, running: bool) -> str:
    """The conversation for the page. Whatever was said is escaped: it is shown as it is, and never becomes markup.

    Buttons have a ``data-do``; page.js turns a click into {"do", "turn", "text"}, which chat.py handles.
    """
    if not turns:
        return f'<p class="hint nothing">{NOTHING_SAID}</p>'
    shown = "".join(turn_html(i, turn, running=running) for i, turn in enumerate(turns))
    waiting = '<p class="hint" aria-hidden="true">…</p>' if running and turns[-1]["role"] != "assistant" else ""
    return f'<div role="log" aria-label="Conversation" aria-busy="{str(running).lower()}">{shown}{waiting}</div>'


def turn_html(index: int, turn: Turn, *, running: bool) -> str:
    """One turn: who, what, and what can be done with it."""
    role = turn["role"]
    parts = [folded("Reasoning", turn["reasoning"])] if turn.get("reasoning") else []
    if turn["content"] or not turn.get("tool_calls"):
        parts.append(f'<p class="said">{escape(turn["content"])}</p>')
    for call in turn.get("tool_calls", ()):
        function = call["function"]
        parts.append(f'<p class="call">calls <b>{escape(function["name"])}</b> {escape(function["arguments"])}</p>')
    parts += [folded(f"Answer {number}", other) for number, other in enumerate(turn.get("others", ()), 2)]
    actions = {"user": ("Copy", "Edit"), "tool": ("Copy", "Edit"), "assistant": ("Copy", "Tokens", "Regenerate")}[role]
    buttons = "" if running else "".join(
        f'<button type="button" data-do="{name.lower()}" data-turn="{index}">{name}</button>' for name in actions
    )  # fmt: skip
    return (
        f'<article class="turn {role}" aria-label="{escape(NAMES[role])}"><h3>{escape(NAMES[role])}</h3>'
        f"{''.join(parts)}<footer>{buttons}</footer></article>"
    )


def folded(title: str, text: str) -> str:
    return f'<details open><summary>{title}</summary><p class="said">{escape(text)}</p></details>'
