"""Exercises of notebook 11: a quantile out of Prometheus buckets, and Little's law."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from quire.learn.answers import Wrong, call, function, number, one_of

Buckets = list[tuple[float, int]]  # upper bound, observations up to it


def quantile(answer: Any) -> str:
    """11-a: a quantile of a cumulative histogram, by interpolation inside the bucket, as Prometheus does it."""
    f = function(answer)
    waits: Buckets = [(0.1, 40), (0.25, 70), (0.5, 90), (1.0, 100), (inf, 100)]
    slow: Buckets = [(0.1, 0), (0.5, 10), (1.0, 20), (inf, 40)]
    for buckets, q, right in (
        (waits, 0.5, 0.15),
        (waits, 0.9, 0.5),
        (waits, 0.95, 0.75),
        (waits, 0.2, 0.05),
        (slow, 0.25, 0.5),
        (slow, 0.9, 1.0),
    ):
        got = number(call(f, buckets, q))
        if abs(got - right) < 1e-9:
            continue
        about = f"{buckets}, q = {q}: {got:g} is not it. "
        if q == 0.9 and buckets is slow:
            raise Wrong(about + "The last bucket has no upper end. All one can say is: more than the bound before it.")
        if got in [bound for bound, _ in buckets]:
            raise Wrong(about + "That is a bucket's bound. Assume that its observations lie evenly between its bounds.")
        if q == 0.2:
            raise Wrong(about + "The first bucket begins at 0.")
        raise Wrong(about + "The counts are cumulative: a bucket's own are those beyond the bucket before it.")
    return "Right. And mind what it says: a p99 is only as sharp as the bucket that it falls into."


def blocks_in_use(answer: Any) -> str:
    """11-b: KV blocks of 16 in use at 12 requests/s that stay 2.5 s and hold 704 tokens each, on average."""
    given = number(answer)
    if given == 1320:
        return "Right: 12 × 2.5 = 30 requests are inside at any time, each with 44 blocks. No simulation needed."
    raise one_of(
        given,
        {
            30.0: "So many requests are inside at once. How many blocks are they?",
            528.0: "How long each of them stays has an influence.",
            21120.0: "Those are tokens.",
            110.0: "So many blocks come in per second and … how long does each stay?",
            44.0: "That is one request. How many are inside at once?",
        },
        "Not yet. Little's law: the mean number inside is arrivals per second times seconds inside.",
    )


CHECKS: dict[str, Callable[[Any], str]] = {"11-a": quantile, "11-b": blocks_in_use}
