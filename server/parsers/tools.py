"""The formats in which models write tool calls.

They are one machine, fed character by character, so that it cannot matter how a text is cut into pieces: outside of
calls text is content; a mark opens calls; a ``CallReader`` takes the JSON of each. A format says which marks there are
and what stands between calls. White space next to calls belongs to the format, not to the content.
"""

from __future__ import annotations

from quire.server.parsers import Delta
from quire.server.parsers.calls import SPACE, At, CallReader, Extent

ARGS = "[ARGS]"
SEPARATORS = "[],;" + SPACE


class CallsParser:
    """Content, and calls behind ``marks``.

    marks  texts that open calls
    close  text that closes each call; without it calls follow one another, possibly as a JSON list
    bare   a text that begins with "{" or "[" is tried as calls, without a mark
    names  calls may have Mistral's newer form, ``name[ARGS]{…}``
    """

    def __init__(
        self, marks: tuple[str, ...] = (), *, close: str = "", bare: bool = False, names: bool = False
    ) -> None:
        self._marks = marks
        self._close = close
        self._names = names
        self._mode = self._start if bare else self._content
        self._held = ""  # may still become a mark, a name or a closing tag
        self._space = ""  # white space that is dropped if a call follows
        self._raw = ""  # the text from which a call is being made, in case that it is none
        self._call: CallReader | Extent | None = None
        self._num_calls = 0
        self._said_behind = False  # content has come since the last call: only before it white space is dropped
        self._skipping = False  # a call's JSON was broken: everything up to the closing tag belongs to it
        self._deltas: list[Delta] = []

    def feed(self, text: str) -> list[Delta]:
        for char in text:
            self._mode(char)
        return self._take()

    def finish(self) -> list[Delta]:
        if self._mode == self._closing:
            pass
        elif isinstance(self._call, CallReader) and self._call.name is not None:
            self._call.finish()
        elif not isinstance(self._call, Extent):
            rest = self._raw + self._space + self._held
            if rest.strip(SEPARATORS if self._raw else SPACE) or not self._num_calls:
                self._raw = self._space = ""
                self._say(rest)
        return self._take()

    # --- one character, in each mode ----------------------------------------------------------------------------------

    def _start(self, char: str) -> None:
        """Nothing but white space so far, and a bare call would be welcome."""
        if char in SPACE:
            self._space += char
        elif char in "{[":
            self._raw, self._space = self._space, ""
            self._mode = self._between
            self._between(char)
        else:
            self._mode = self._content
            self._content(char)

    def _content(self, char: str) -> None:
        self._held += char
        while self._held and not any(mark.startswith(self._held) for mark in self._marks):
            first, self._held = self._held[0], self._held[1:]
            if first in SPACE:
                self._space += first
            else:
                space, self._space = self._space, ""
                self._say(first if self._num_calls and not self._said_behind else space + first)
                self._said_behind = True
        if self._held in self._marks:
            self._raw, self._held, self._space = self._held, "", ""
            self._mode = self._between

    def _between(self, char: str) -> None:
        """Behind a mark or a call, before the next call."""
        if char == "{":
            self._call = CallReader(self._num_calls)
            self._mode = self._in_call
            self._in_call(char)
        elif char in SPACE or (not self._close and char in "],;"):
            self._raw += char
        else:
            self._mode = self._word
            self._word(char)

    def _word(self, char: str) -> None:
        """Something else in the place of a call: a list's bracket, a further mark, a name, or content after all."""
        self._held += char
        if any(mark.startswith(self._held) for mark in self._marks):
            if self._held in self._marks:
                self._raw, self._held = self._raw + self._held, ""
                self._mode = self._between
        elif self._held[0] == "[" and not self._close:
            rest, self._held = self._held[1:], ""
            self._raw += "["
            self._mode = self._between
            for c in rest:
                self._mode(c)
        elif self._names and char == "{" and (name := self._held[:-1].removesuffix(ARGS)):
            self._raw = self._held = ""
            self._deltas.append(Delta(call=self._num_calls, name=name))
            self._call = Extent()
            self._mode = self._in_arguments
            self._in_arguments(char)
        elif not self._names or not is_name(self._held):
            self._give_up(self._held)

    def _in_call(self, char: str) -> None:
        call = self._call
        assert isinstance(call, CallReader)
        call.read(char)
        self._deltas += call.take()
        if call.at is At.BROKEN and call.name is None:
            self._give_up(call.raw)
        elif call.at in (At.BROKEN, At.DONE):
            self._end_call(broken=call.at is At.BROKEN)

    def _in_arguments(self, char: str) -> None:
        assert isinstance(self._call, Extent)
        self._deltas.append(Delta(call=self._num_calls, arguments=char))
        if self._call.ends_with(char):
            self._end_call(broken=False)

    def _closing(self, char: str) -> None:
        """Behind the JSON of a call: its closing tag, and then content. Without the tag what follows is content."""
        self._held = (self._held + char).lstrip(SPACE)
        if self._held == self._close:
            self._held = ""
            self._mode = self._content
        elif not self._close.startswith(self._held):
            rest = self._held[1:] if self._skipping else self._held
            self._held = ""
            self._mode = self._closing if self._skipping else self._content
            for c in rest:
                self._mode(c)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end_call(self, *, broken: bool) -> None:
        self._call = None
        self._num_calls += 1
        self._raw, self._said_behind, self._skipping = "", False, broken
        if self._close:
            self._mode = self._closing
        else:
            self._mode = self._content if broken else self._between

    def _give_up(self, text: str) -> None:
        """It was no call: what was read of it is content, and so is what follows."""
        text, self._raw, self._held = self._raw + text, "", ""
        self._call = None
        self._mode = self._content
        said = text.rstrip(SPACE)
        self._say(said)
        self._said_behind = True
        self._space = text[len(said) :]

    def _say(self, content: str) -> None:
        if content:
            self._deltas.append(Delta(content=content))

    def _take(self) -> list[Delta]:
        """The deltas so far, with neighbours of the same kind joined."""
        joined: list[Delta] = []
        for delta in self._deltas:
            last = joined[-1] if joined else None
            if last is not None and last.call == delta.call and delta.name is None:
                last.content += delta.content
                last.arguments += delta.arguments
            else:
                joined.append(delta)
        self._deltas = []
        return joined


class NamedParser:
    """The whole text is the arguments of one function: a forced choice, held to the function's schema."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> list[Delta]:
        if not text:
            return []
        name, self._name = self._name, None
        first = [] if name is None else [Delta(call=0, name=name)]
        return [*first, Delta(call=0, arguments=text)]

    def finish(self) -> list[Delta]:
        return []


def is_name(text: str) -> bool:
    """Whether this may be the beginning of ``name[ARGS]``."""
    name, bracket, rest = text.partition("[")
    return len(name) < 100 and all(c.isalnum() or c in "_-." for c in name) and ARGS.startswith(bracket + rest)
