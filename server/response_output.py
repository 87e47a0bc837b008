"""The output of a response while it is being written: from a parser's deltas to items and OpenAI's typed events.

The answer without streaming is what the items hold when the events of a stream would have ended, so the two agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.server.parsers import Delta
from quire.server.response_items import Item, new_id

Event = dict[str, Any]  # as it is sent, but for its sequence_number


class ResponseOutput:
    """One item after the other: a new one begins where the model turns from reasoning to text, or to a call.

    ``items`` are all so far; the last one is open until something else begins or ``end`` is called.
    """

    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self.items: list[Item] = []
        self._new_call_id = new_call_id
        self._open: tuple[str, int | None] | None = None  # kind of the open item, and which call it is
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still to come

    def add(self, deltas: list[Delta], logprobs: list[dict[str, Any]] | None) -> list[Event]:
        """What is new, with the log-probabilities of its tokens where they were asked for."""
        events: list[Event] = []
        self._logprobs += logprobs or ()
        for delta in deltas:
            if delta.call is not None:
                events += self._turn_to("function_call", delta.call, name=delta.name)
                if delta.arguments:
                    self.items[-1]["arguments"] += delta.arguments
                    events.append(self._event("response.function_call_arguments.delta", delta=delta.arguments))
            elif delta.reasoning:
                events += self._turn_to("reasoning")
                self._part["text"] += delta.reasoning
                events.append(self._in_part("response.reasoning_text.delta", delta=delta.reasoning))
            elif delta.content:
                events += self._turn_to("message")
                events.append(self._say(delta.content))
        return events

    def end(self, *, complete: bool) -> list[Event]:
        """Nothing more comes. An answer without any text is an empty one, and has a message all the same."""
        events = [] if self.items else self._turn_to("message")
        if self._logprobs and self._open == ("message", None):
            events.append(self._say(""))
        return events + self._close("completed" if complete else "incomplete")

    @property
    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.items[-1]["content"][0]
        return part

    def _say(self, text: str) -> Event:
        logprobs, self._logprobs = self._logprobs, []
        self._part["text"] += text
        self._part["logprobs"] += logprobs
        return self._in_part("response.output_text.delta", delta=text, logprobs=logprobs)

    def _turn_to(self, kind: str, call: int | None = None, *, name: str | None = None) -> list[Event]:
        """Open an item of this kind if it is not open already."""
        if self._open == (kind, call):
            return []
        events = self._close("completed")
        self._open = kind, call
        item: Item
        if kind == "function_call":
            item = {"type": kind, "id": new_id("fc"), "call_id": self._new_call_id(), "name": name, "arguments": ""}
            self.items.append(item | {"status": "in_progress"})
            return [*events, self._item_event("response.output_item.added")]
        if kind == "reasoning":
            item = {"type": kind, "id": new_id("rs"), "summary": []}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"type": kind, "id": new_id("msg"), "role": "assistant"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items.append(item | {"content": [], "status": "in_progress"})
        events.append(self._item_event("response.output_item.added"))
        events.append(self._in_part("response.content_part.added", part=dict(part)))
        self.items[-1]["content"].append(part)
        return events

    def _close(self, status: str) -> list[Event]:
        """The open item is finished."""
        if self._open is None:
            return []
        kind, _ = self._open
        self._open = None
        item = self.items[-1]
        item["status"] = status
        if kind == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._event("response.function_call_arguments.done", **done)]
        else:
            part = self._part
            if kind == "reasoning":
                events = [self._in_part("response.reasoning_text.done", text=part["text"])]
            else:
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                events = [self._in_part("response.output_text.done", **done)]
            events.append(self._in_part("response.content_part.done", part=part))
        return [*events, self._item_event("response.output_item.done")]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}

    def _in_part(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, content_index=0, **fields)

    def _item_event(self, kind: str) -> Event:
        item = self.items[-1]
        shown = item | {"content": list(item["content"])} if "content" in item else dict(item)  # it goes on changing
        return {"type": kind, "output_index": len(self.items) - 1, "item": shown}
