"""Telling reasoning from the answer: ``<think>…</think>`` before the text that is meant for the reader."""

from __future__ import annotations

from quire.server.parsers import Delta, Parser
from quire.server.parsers.calls import SPACE


class ThinkParser:
    """Reasoning up to ``</think>``, then whatever ``inner`` makes of the rest. White space around the tags is dropped.

    With ``begins_inside`` the prompt has already opened the tag, as DeepSeek R1's template does; else text that does
    not begin with ``<think>`` is no reasoning.
    """

    OPEN, CLOSE = "<think>", "</think>"

    def __init__(self, inner: Parser, *, begins_inside: bool) -> None:
        self._inner = inner
        self._begins_inside = begins_inside
        self._mode = "start"  # then "reasoning", "behind" (white space after the tag) and "answer"
        self._text = ""
        self._reasoned = False

    def feed(self, text: str) -> list[Delta]:
        if self._mode == "answer":
            return self._inner.feed(text)
        self._text += text
        deltas: list[Delta] = []
        if self._mode == "start":
            self._start()
        if self._mode == "reasoning":
            deltas += self._reasoning()
        if self._mode == "behind" and (answer := self._text.lstrip(SPACE)):
            self._mode, self._text = "answer", answer
        if self._mode == "answer":
            text, self._text = self._text, ""
            deltas += self._inner.feed(text)
        return deltas

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        if self._mode == "reasoning" and self._text.strip(SPACE):
            deltas.append(self._reason(self._text))
        elif self._mode == "start":
            deltas += self._inner.feed(self._text)
        self._text = ""
        return deltas + self._inner.finish()

    def _start(self) -> None:
        stripped = self._text.lstrip(SPACE)
        if stripped.startswith(self.OPEN):
            self._mode, self._text = "reasoning", stripped[len(self.OPEN) :]
        elif not self.OPEN.startswith(stripped):
            self._mode = "reasoning" if self._begins_inside else "answer"

    def _reasoning(self) -> list[Delta]:
        end = self._text.find(self.CLOSE)
        if end >= 0:
            said, self._text = self._text[:end].rstrip(SPACE), self._text[end + len(self.CLOSE) :]
            self._mode = "behind"
        else:
            decided = self._text[: len(self._text) - partial(self._text, self.CLOSE)]
            said = decided.rstrip(SPACE)
            self._text = self._text[len(said) :]
        return [self._reason(said)] if said.strip(SPACE) else []

    def _reason(self, text: str) -> Delta:
        text = text if self._reasoned else text.lstrip(SPACE)
        self._reasoned = True
        return Delta(reasoning=text)


def partial(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
