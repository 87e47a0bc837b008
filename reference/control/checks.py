"""Checks of what a user gives, shared by the parameter classes: each raises an error that names field and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

from quire.reference.control.errors import QuireError, RequestError

T = TypeVar("T")
MAX_INT = 2**63 - 1


def number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    """Check a finite real number within [low, high], or (low, high] with ``open_low``."""
    given = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(given) or not (low < given if open_low else low <= given) or given > high:
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{']' if math.isfinite(high) else ')'}"
        raise RequestError(name, value, "not a finite number in the allowed range", f"Give a number in {interval}")


def integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check an integer that is at least ``low`` and at most ``high``, or else what 64 bits hold."""
    given = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if given is None or not low <= given <= (MAX_INT if high is None else high):
        limit = f"from {low} to {high}" if high is not None else f"of at least {low}"
        limit += ", of 64 bits" if high is None and given is not None and given > MAX_INT else ""
        raise RequestError(name, value, "not an allowed integer", f"Give an integer {limit}")


def flag(name: str, value: object) -> None:
    """Check a boolean: text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise RequestError(name, value, "neither True nor False", "Give True or False")


def known_fields_only(error: type[QuireError], what: str) -> Callable[[type[T]], type[T]]:
    """Class decorator for a keyword-only dataclass: an unknown name is refused with what was probably meant."""

    def decorate(cls: type[T]) -> type[T]:
        build = cls.__init__

        @wraps(build)
        def checked(self: T, **values: Any) -> None:
            known = sorted(cls.__dataclass_fields__)  # type: ignore[attr-defined]
            for name in set(values) - set(known):
                meant = get_close_matches(name, known, 1)
                remedy = f"Did you mean {meant[0]}" if meant else f"Known ones are {', '.join(known)}"
                raise error(name, values[name], f"unknown {what}", remedy)
            build(self, **values)

        cls.__init__ = checked  # type: ignore[method-assign, assignment]
        return cls

    return decorate


def token_ids(name: str, value: Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset):
        raise RequestError(name, value, "not a list of token ids", "Give a list of integers")
    for token in value:
        integer(name, token, 0)
    return tuple(int(t) for t in value)


def strings(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    values = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(values, Sequence | set | frozenset) or any(not isinstance(s, str) or not s for s in values):
        raise RequestError(
            name, value, "contains an empty string or something that is no string", "Give non-empty strings"
        )
    return tuple(values)
