"""Reading the JSON of tool calls while it is being written.

``CallReader`` takes one object ``{"name": …, "arguments": {…}}`` character by character. The name is known once its
string is closed; the arguments are passed on as the model writes them. Keys may come in any order, others are skipped.
"""

from __future__ import annotations

import json
from enum import Enum, auto

from quire.server.parsers import Delta

ARGUMENTS = ("arguments", "parameters")
SPACE = " \t\r\n"


class At(Enum):
    """Where in the object the reader is."""

    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    DONE = auto()
    BROKEN = auto()


class CallReader:
    """One call. ``raw`` is all that was read; ``deltas`` is what became known and has not been taken yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.raw = ""
        self.at = At.START
        self.name: str | None = None
        self._key = ""
        self._value = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._arguments = ""  # known, and not passed on yet
        self._has_arguments = False
        self.deltas: list[Delta] = []

    def read(self, char: str) -> None:
        """One more character. Characters behind the end of the object must not be given."""
        self.raw += char
        match self.at:
            case At.START:
                if char == "{":
                    self.at = At.KEY
                elif char not in SPACE:
                    self.at = At.BROKEN
            case At.KEY:
                self._read_key(char)
            case At.COLON:
                if char == ":":
                    self.at, self._value, self._depth = At.VALUE, "", 0
                elif char not in SPACE:
                    self.at = At.BROKEN
            case At.VALUE:
                self._read_value(char)

    def finish(self) -> None:
        """The text has ended here; what is known of the arguments is passed on."""
        self._flush(final=True)

    def _read_key(self, char: str) -> None:
        if self._in_string:
            if char == '"' and not self._escaped:
                self._in_string, self.at = False, At.COLON
            else:
                self._key += char
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._key, self._in_string, self._escaped = "", True, False
        elif char == "}":
            self._end()
        elif char not in SPACE + ",":
            self.at = At.BROKEN

    def _read_value(self, char: str) -> None:
        if not self._value and char in SPACE:
            return
        if self._in_string:
            if char == '"' and not self._escaped:
                self._in_string = False
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string, self._escaped = True, False
        elif char in "{[":
            self._depth += 1
        elif self._depth == 0 and char in ",}":  # behind a number, true, false, null or a closed string
            self._close_value()
            self.at = At.KEY
            if char == "}":
                self._end()
            return
        elif char in "}]":
            self._depth -= 1
        self._take(char)
        if self._depth == 0 and char in "}]" and not self._in_string:
            self._close_value()
            self.at = At.KEY

    def _take(self, char: str) -> None:
        self._value += char
        if self._key in ARGUMENTS:
            self._has_arguments = True
            if self._value[0] == "{":  # anything else is passed on when it is whole
                self._arguments += char
                self._flush()

    def _close_value(self) -> None:
        value = self._value.rstrip(SPACE)
        if self._key == "name":
            try:
                name = json.loads(value)
            except ValueError:
                name = None
            if not isinstance(name, str) or not name:
                self.at = At.BROKEN
                return
            if self.name is None:
                self.name = name
                self.deltas.append(Delta(call=self.number, name=name))
                self._flush()
        elif self._key in ARGUMENTS and value[:1] == '"':
            try:
                self._arguments += json.loads(value)  # arguments that were written as a string of JSON
            except ValueError:
                self._arguments += value
            self._flush()
        elif self._key in ARGUMENTS and value[:1] != "{":
            self._arguments += "{}" if value in ("", "null") else value
            self._flush()
        self._key = self._value = ""

    def _end(self) -> None:
        if self.at is At.BROKEN:
            return
        self.at = At.DONE if self.name is not None else At.BROKEN
        if not self._has_arguments:
            self._arguments = "{}"
        self._flush()

    def _flush(self, *, final: bool = False) -> None:
        if final and self.at is At.VALUE and self._key in ARGUMENTS and self._value[:1] != "{":
            self._arguments += self._value
        if self.name is not None and self._arguments:
            self.deltas.append(Delta(call=self.number, arguments=self._arguments))
            self._arguments = ""

    def take(self) -> list[Delta]:
        """What became known since the last time."""
        deltas, self.deltas = self.deltas, []
        return deltas


class Extent:
    """Where a JSON object ends that is passed on as it is."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def ends_with(self, char: str) -> bool:
        """One more character: whether it is the object's last."""
        if self._in_string:
            self._in_string = char != '"' or self._escaped
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string, self._escaped = True, False
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        return self._depth == 0
