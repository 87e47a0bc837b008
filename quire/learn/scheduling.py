"""Exercises of notebooks 05 (continuous batching, chunked prefill) and 06 (preemption)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quire.learn.answers import Wrong, call, function, number, one_of


def static_steps(answer: Any) -> str:
    """05-a: decode steps for outputs of 10, 40, 20, 80, 30, 60 tokens in fixed batches of three, in this order."""
    lengths = [10, 40, 20, 80, 30, 60]
    hints = {
        float(sum(lengths)): "That is one after the other, without any batch.",
        80.0: "The second batch begins when the first has ended, and no place is given away before.",
        100.0: "Continuous batching would be done by about then. A fixed batch keeps its places until all have ended.",
    }
    given = number(answer)
    if given == 120:
        return "Right: 40 + 80. A third of the places stood empty: 240 tokens in 120 steps of three places."
    raise one_of(given, hints, "Not yet. A fixed batch takes as long as its longest member; then the next one starts.")


Work = tuple[int, int]  # tokens computed, tokens known


def plan(answer: Any) -> str:
    """05-b: hand out a budget of tokens: [(computed, known)] of running and waiting sequences -> tokens for each."""
    f = function(answer)
    cases: list[tuple[list[Work], list[Work], int]] = [
        ([(9, 10), (4, 5)], [], 8),
        ([(9, 10), (4, 5)], [(0, 30)], 8),
        ([(9, 10), (4, 5)], [(0, 3), (0, 30), (0, 2)], 8),
        ([(9, 10), (4, 5), (7, 8)], [(0, 3)], 2),
        ([(16, 50), (9, 10)], [(0, 5)], 8),
        ([], [(0, 4), (0, 4)], 4),
        ([(9, 10)], [(0, 3), (0, 3)], 16),
    ]
    for running, waiting, budget in cases:
        right = _plan([*running, *waiting], budget)
        got = call(f, running, waiting, budget)
        if not isinstance(got, Sequence) or len(got) != len(right):
            raise Wrong(f"A list is wanted with a number for each sequence, running ones first: here {len(right)}.")
        given = [number(n) for n in got]
        if given == right:
            continue
        about = f"running {running}, waiting {waiting}, budget {budget}: "
        if sum(given) > budget:
            raise Wrong(about + f"{sum(given):g} tokens are more than the budget.")
        if any(n > known - computed for n, (computed, known) in zip(given, [*running, *waiting])):
            raise Wrong(about + "somebody computes more tokens than are known. A decode has exactly one.")
        if any(n < r for n, r in zip(given[: len(running)], right)):
            raise Wrong(about + "who runs already is served first, in order.")
        if sum(given) < sum(right):
            raise Wrong(about + "budget is left over while somebody waits. A part of a prompt may be computed, too.")
        raise Wrong(about + f"{got} overtakes somebody who came earlier.")
    return "Right: that is the scheduler. No prefill phase, no decode phase, only work and a budget."


def _plan(work: list[Work], budget: int) -> list[int]:
    counts = []
    for computed, known in work:
        counts.append(min(known - computed, budget))
        budget -= counts[-1]
    return counts


def victims(answer: Any) -> str:
    """06-a: who gives blocks back: indices in the list, first victim first; (priority, arrival, blocks) of each."""
    f = function(answer)
    for sequences, needy, free, need in (
        ([(0, 0, 4), (0, 1, 4), (0, 2, 4)], 0, 0, 1),
        ([(0, 0, 4), (0, 1, 2), (0, 2, 1)], 0, 0, 3),
        ([(0, 2, 4), (0, 0, 4), (0, 1, 4)], 1, 0, 1),
        ([(1, 0, 4), (0, 1, 4), (0, 2, 4)], 1, 0, 1),
        ([(0, 0, 4), (0, 1, 4), (0, 2, 4)], 1, 2, 1),
        ([(0, 0, 4), (0, 1, 4), (0, 2, 4)], 2, 0, 1),
        ([(5, 0, 9), (0, 1, 4), (5, 2, 1)], 1, 1, 3),
        ([(0, 0, 4), (0, 1, 4), (0, 2, 1)], 1, 0, 2),
    ):
        right = _victims(sequences, needy, free, need)
        got = call(f, sequences, needy, free, need)
        if not isinstance(got, Sequence):
            raise Wrong("A list of indices is wanted: who is preempted, in this order.")
        if list(got) == right:
            continue
        about = f"{sequences}, sequence {needy} needs {need}, {free} are free: {list(got)} is not it. "
        if free >= need:
            raise Wrong(about + "Nobody has to yield where enough is free.")
        if needy in right and needy not in got:
            raise Wrong(about + "If nobody stands behind the needy one in the order, it yields itself.")
        if len(got) > len(right):
            raise Wrong(about + "That is more than it takes. A victim's blocks count before the next is taken.")
        if len({s[0] for s in sequences}) > 1:
            raise Wrong(about + "Priority comes before arrival, and a lower number is served first.")
        raise Wrong(about + "The order of service is priority, then arrival. Victims come from its end.")
    return "Right. The first in the order can take from everybody and yields to nobody: so it ends, and so do all."


def _victims(sequences: list[tuple[int, int, int]], needy: int, free: int, need: int) -> list[int]:
    order = sorted(range(len(sequences)), key=lambda i: sequences[i][:2])
    taken: list[int] = []
    while free < need:
        taken.append(order.pop())
        if taken[-1] == needy:
            break
        free += sequences[taken[-1]][2]
    return taken


def cheaper(answer: Any) -> str:
    """06-b: swap or recompute, given tokens, bytes of K/V per token, the link's bytes/s and prefill tokens/s."""
    f = function(answer)
    for tokens, per_token, link, prefill in (
        (1000, 131_072, 25e9, 20_000),
        (1000, 131_072, 25e9, 200_000),
        (1000, 131_072, 25e9, 120_000),
        (100, 16_384, 10e9, 5_000),
        (4000, 524_288, 12e9, 30_000),
    ):
        swap, compute = 2 * tokens * per_token / link, tokens / prefill
        got = call(f, tokens, per_token, link, prefill)
        if got not in ("swap", "recompute"):
            raise Wrong(f'"swap" or "recompute" is wanted, not {got!r}.')
        if got == ("swap" if swap < compute else "recompute"):
            continue
        if (swap / 2 < compute) != (swap < compute):
            raise Wrong("Close. The blocks do not only have to leave: how often do they pass the link?")
        raise Wrong(
            f"{tokens} tokens of {per_token} bytes, {link:g} bytes/s, {prefill} tokens/s: how long does each take?"
        )
    return "Right. The number of tokens cancels out: it is the model and the machine that decide."


CHECKS: dict[str, Callable[[Any], str]] = {"05-a": static_steps, "05-b": plan, "06-a": victims, "06-b": cheaper}
