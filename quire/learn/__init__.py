"""The exercises of ``notebooks/``, checked: ``check("03-a", answer)`` says whether an answer is right.

A wrong answer gets a hint, never the solution. Numbers are compared with what the engine's own arithmetic gives;
functions are run on inputs that were chosen for the mistakes that people make, beside the engine's own code. The
checks stand in one file per group of notebooks, each a function that returns what the right answer teaches and raises
``Wrong`` with a hint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from quire.learn.answers import Wrong
from quire.reference.control.errors import QuireError

__all__ = ["Verdict", "check", "exercises"]

_HOME = {
    "01": "attention",
    "02": "memory",
    "03": "attention",
    "04": "memory",
    "05": "scheduling",
    "06": "scheduling",
    "07": "memory",
    "08": "sampling",
    "09": "sampling",
    "10": "kernels",
    "11": "serving",
    "12": "engine",
}


@dataclass(frozen=True)
class Verdict:
    """What became of an answer. True if it is right; a notebook shows ``text`` where it is a cell's last value."""

    exercise: str
    right: bool
    text: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{self.exercise} {'✓' if self.right else '–'} {self.text}"


def exercises() -> list[str]:
    """The names of all exercises, in order."""
    return sorted(name for notebook in _HOME for name in _checks(notebook))


def check(exercise: str, answer: Any) -> Verdict:
    """Judge an answer: a number, a list or a function, as the exercise says. ``None`` and ``...`` mean none yet.

    exercise  such as "03-a": the first exercise of notebook 03

    Raises ``QuireError`` if there is no such exercise. An answer that raises an error is wrong, and the hint says how.
    """
    notebook, _, letter = str(exercise).partition("-")
    judge = _checks(notebook).get(exercise) if notebook in _HOME and letter else None
    if judge is None:
        raise QuireError("exercise", exercise, "no such exercise", f"There are {', '.join(exercises())}")
    if answer is None or answer is ...:
        return Verdict(exercise, False, "Your turn: write an answer above, then run this cell again.")
    try:
        return Verdict(exercise, True, judge(answer))
    except Wrong as hint:
        return Verdict(exercise, False, str(hint))


def _checks(notebook: str) -> dict[str, Callable[[Any], str]]:
    """The checks of one notebook, by exercise. Imported when they are asked for: some need torch."""
    every: dict[str, Callable[[Any], str]] = import_module(f"quire.learn.{_HOME[notebook]}").CHECKS
    return {name: judge for name, judge in every.items() if name.startswith(notebook)}
