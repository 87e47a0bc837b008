"""From a model's text to content, reasoning and tool calls, piece by piece.

A parser reads one completion: ``feed`` it the text as it comes, then ``finish``. Both return deltas. The answer without
streaming is by definition the sum of these deltas (``parse``), so that the two can never disagree.

A parser never raises: text that looks like a call and turns out to be none is content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class Delta:
    """What is new: some content, some reasoning, or a part of one tool call.

    The first delta of a call has its ``name``; the following ones only more of ``arguments`` (JSON text, as the model
    wrote it). ``call`` counts the calls of the completion from 0; None = no tool call.
    """

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


class Parser(Protocol):
    """Reads the text of one completion."""

    def feed(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


@dataclass(slots=True)
class ToolCall:
    """A whole call."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """All deltas of a completion together."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.content += delta.content
        self.reasoning += delta.reasoning
        if delta.call is not None:
            if delta.name is not None:
                self.tool_calls.append(ToolCall(delta.name))
            self.tool_calls[delta.call].arguments += delta.arguments


def parse(parser: Parser, text: str) -> Parsed:
    """The whole text at once."""
    parsed = Parsed()
    for delta in [*parser.feed(text), *parser.finish()]:
        parsed.add(delta)
    return parsed


class PlainParser:
    """All text is content."""

    def feed(self, text: str) -> list[Delta]:
        return [Delta(content=text)] if text else []

    def finish(self) -> list[Delta]:
        return []
