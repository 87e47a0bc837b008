"""``StructuredOutputsParams``: the form that a request's text must have, checked for its shape.

Whether the schema, regex or grammar is a good one is for the compiler to say (``quire.reference.structured``), which
has the library for it; here is nothing but the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.reference.control.checks import flag, known_fields_only, strings
from quire.reference.control.errors import RequestError

KINDS = ("json", "regex", "choice", "grammar", "json_object")
MAX_SIZE = 1 << 18  # characters of a schema, a regex, a grammar, or all choices together


@known_fields_only(RequestError, "structured outputs parameter")
@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """What the text must look like: exactly one of the first five. Names are vLLM's.

    json                    a JSON schema, as a dict or as JSON text (which it is kept as)
    regex                   a regular expression (Rust's syntax, no look-around) that the whole text matches
    choice                  the text is one of these strings
    grammar                 a context-free grammar in Lark's syntax, as llguidance reads it; its first rule is ``start``
    json_object             True: any JSON object
    disable_any_whitespace  of ``json`` and ``json_object``: no whitespace between the JSON's parts
    whitespace_pattern      of the same: a regular expression for the whitespace between the JSON's parts
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)  # said in other words: not asked for
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(
                "structured_outputs", given, f"{len(given) or 'none'} of {', '.join(KINDS)} given",
                "Give exactly one of them",
            )  # fmt: skip
        if self.json is not None:
            object.__setattr__(self, "json", _json_text("structured_outputs.json", self.json))
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise RequestError(f"structured_outputs.{name}", value, "not a text", "Give a non-empty string")
        if self.choice is not None:
            if isinstance(self.choice, str) or not self.choice:
                problem = "one string, not a list" if self.choice else "nothing to choose from"
                raise RequestError("structured_outputs.choice", self.choice, problem, "Give a list of strings")
            object.__setattr__(self, "choice", strings("structured_outputs.choice", self.choice))
        if self.json_object is not None:
            flag("structured_outputs.json_object", self.json_object)
        flag("structured_outputs.disable_any_whitespace", self.disable_any_whitespace)
        for name in ("disable_any_whitespace", "whitespace_pattern"):
            if getattr(self, name) and self.kind not in ("json", "json_object"):
                raise RequestError(
                    f"structured_outputs.{name}", getattr(self, name), f"has no meaning for {self.kind}",
                    "Leave it out, or ask for json",
                )  # fmt: skip
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise RequestError(
                "structured_outputs.whitespace_pattern", self.whitespace_pattern, "and disable_any_whitespace is True",
                "Give one of them",
            )  # fmt: skip
        _check_text(f"structured_outputs.{self.kind}", getattr(self, self.kind))
        _check_text("structured_outputs.whitespace_pattern", self.whitespace_pattern)

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)


def _check_text(name: str, value: object) -> None:
    """Check the size of a text, or of several, and that it is Unicode."""
    text = "".join(value) if isinstance(value, tuple) else value if isinstance(value, str) else ""
    if len(text) > MAX_SIZE:
        raise RequestError(name, value, f"{len(text)} characters, which is too long", f"Give at most {MAX_SIZE}")
    try:
        text.encode()
    except UnicodeEncodeError:
        problem = "contains half a surrogate pair, which is no character"
        raise RequestError(name, ascii(value), problem, "Decode the text anew, perhaps as UTF-16") from None


def _json_text(name: str, value: object) -> str:
    """A JSON schema as JSON text, or the error that says why it is none."""
    remedy = "Give a JSON schema, as a dict or as JSON text"
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise RequestError(name, "…", "nested too deeply", "Use $ref for what repeats") from None
    except (TypeError, ValueError) as error:
        raise RequestError(name, value, f"no JSON ({error})", remedy) from None
    if not isinstance(schema, Mapping | bool):
        raise RequestError(name, value, "JSON, but no schema: neither an object nor a boolean", remedy)
    return text
