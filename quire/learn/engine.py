"""The exercise of notebook 12: another order of service, in an engine that the learner has changed."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isclass
from typing import Any

from quire.learn.answers import Wrong
from quire.zoo import model_path


def shortest_first(answer: Any) -> str:
    """12-a: a subclass of ``TinyEngine`` that admits short prompts first, beside the class that it comes from."""
    base = answer.__mro__[1] if isclass(answer) else object
    if not hasattr(base, "order"):
        raise Wrong("A class is wanted that inherits from TinyEngine; give its name without brackets.")
    if answer.order is base.order:
        raise Wrong("Your turn: override order.")
    plain, _ = _serve(base)
    try:
        changed, firsts = _serve(answer)
    except NotImplementedError:
        raise Wrong("Your turn: order is still to be written.") from None
    except Exception as error:
        raise Wrong(f"With it the engine fails: {type(error).__name__}: {error}") from error
    if changed != plain:
        raise Wrong("Some texts are other ones or missing. order must return every waiting sequence, and change none.")
    if firsts != sorted(firsts):
        raise Wrong(f"Prompts of {SHORT} tokens came after the one of {LONG}, or the long ones first: what is the key?")
    return (
        "Right. But while short prompts keep coming, a long one starves. First come, first served is why nobody does."
    )


SHORT, LONG = 20, 60


def _serve(engine_class: Any) -> tuple[list[list[int]], list[int]]:
    """The texts of requests of falling prompt lengths, and the lengths in the order of their first tokens."""
    engine = engine_class(model_path("pocket"), num_blocks=40, budget=16)
    lengths = [LONG, 50, 40, 30, SHORT]
    sequences = [engine.add(list(range(100 * i + 100, 100 * i + 100 + n)), 4) for i, n in enumerate(lengths)]
    firsts: list[int] = []
    for _ in range(200):
        if not (engine.waiting or engine.running):
            break
        engine.step()
        firsts += [n for seq, n in zip(sequences, lengths) if seq.output and n not in firsts]
    return [seq.output for seq in sequences], firsts


CHECKS: dict[str, Callable[[Any], str]] = {"12-a": shortest_first}
