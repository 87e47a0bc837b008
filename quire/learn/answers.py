"""How an answer is taken in: as a number, or as a function that is called without being trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt


class Wrong(Exception):
    """The answer is not right; the text is a hint."""


def number(answer: Any) -> float:
    """The answer as a number, which a computed one (NumPy's, a tensor of one) may be as well."""
    if hasattr(answer, "item"):
        try:
            answer = answer.item()
        except (RuntimeError, ValueError):
            raise Wrong("A single number is wanted, and this is an array of several.") from None
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise Wrong(f"A number is wanted, and this is {kind(answer)}.")
    return float(answer)


def one_of(answer: float, hints: Mapping[float, str], otherwise: str) -> Wrong:
    """The hint for a number that is not right: that of the mistake which leads to it, if somebody else made it too."""
    for value, hint in hints.items():
        if abs(answer - value) <= 1e-6 * max(1.0, abs(value)):
            return Wrong(hint)
    return Wrong(otherwise)


def function(answer: Any) -> Callable[..., Any]:
    if not callable(answer):
        raise Wrong(f"A function is wanted, and this is {kind(answer)}. Give its name without brackets.")
    result: Callable[..., Any] = answer
    return result


def call(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns for copies of the arguments. One that has not been written yet returns None."""
    try:
        result = answer(*deepcopy(arguments))
    except NotImplementedError:
        raise Wrong("Your turn: the function is still to be written.") from None
    except Exception as error:
        raise Wrong(f"For {shown(arguments)} it raises {type(error).__name__}: {error}") from error
    if result is None or result is ...:
        raise Wrong("Your turn: the function returns nothing yet.")
    return result


def array(answer: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A returned array of the given shape, of numbers."""
    try:
        result = np.asarray(answer, np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"An array of numbers is wanted, and this is {kind(answer)}.") from None
    if result.shape != shape:
        raise Wrong(f"The result has shape {list(result.shape)}, and {list(shape)} is wanted.")
    return result


def kind(answer: Any) -> str:
    name = type(answer).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def shown(arguments: tuple[Any, ...]) -> str:
    """Arguments as in a call; arrays by their shapes."""

    def one(x: Any) -> str:
        if hasattr(x, "shape"):
            return f"array{list(x.shape)}"
        text = repr(x)
        return text if len(text) <= 60 else text[:57] + "…"

    return f"({', '.join(map(one, arguments))})"
