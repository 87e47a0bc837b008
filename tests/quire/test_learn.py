"""The checks of the exercises: they take the right answer in any form, and have a hint for each typical wrong one.

This file holds the solutions; the hints never do.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
import torch

from quire.learn import check, exercises
from quire.reference.control.errors import QuireError
from tests.notebooks.test_notebooks import load


def softmax(x: Any) -> Any:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attend(q, keys, values):
    return softmax(keys @ q / np.sqrt(len(q))) @ values


def paged(q, k_cache, v_cache, table, length, *, head_of=None, blocks=None, width=None):
    """Paged attention, with the places where one can go wrong."""
    size = k_cache.shape[1]
    p = np.arange(width or length)
    block, offset = np.array(blocks or table)[p // size], p % size
    keys, values = k_cache[block, offset], v_cache[block, offset]
    share = len(q) // keys.shape[1]
    heads = [(head_of or (lambda h: h // share))(h) for h in range(len(q))]
    return np.stack([attend(q[h], keys[:, k], values[:, k]) for h, k in enumerate(heads)])


def plan(running, waiting, budget):
    counts = []
    for computed, known in [*running, *waiting]:
        counts.append(min(known - computed, budget))
        budget -= counts[-1]
    return counts


def victims(sequences, needy, free, need, key=lambda s: (s[0], s[1]), stop=True):
    order, taken = sorted(range(len(sequences)), key=lambda i: key(sequences[i])), []
    while free < need and order:
        taken.append(order.pop())
        if stop and taken[-1] == needy:
            break
        free += sequences[taken[-1]][2]
    return taken


def cached_tokens(earlier, prompt, block_size):
    def common(other):
        return next((i for i, (a, b) in enumerate(zip(other, prompt)) if a != b), min(len(other), len(prompt)))

    return max((common(e) // block_size * block_size for e in earlier), default=0)


def top_p(probs, p, *, strict=False):
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    kept = np.zeros(len(probs), bool)
    kept[order] = before + probs[order] <= p if strict else before < p
    return kept


def accepted(drafts, own):
    n = 0
    while n < len(drafts) and drafts[n] == own[n]:
        n += 1
    return own[: n + 1]


def rms_norm(x, weight, eps, dtype=torch.float32):
    y = x.to(dtype)
    return (y * (y.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weight.to(dtype)).to(x.dtype)


def quantile(buckets, q):
    rank, low, below = q * buckets[-1][1], 0.0, 0
    for bound, count in buckets:
        if count >= rank:
            return low if bound == inf else low + (bound - low) * (rank - below) / (count - below)
        low, below = bound, count
    raise AssertionError


tiny = load("tiny_engine")


class ShortestFirst(tiny.TinyEngine):
    def order(self, waiting):
        return sorted(waiting, key=lambda seq: (len(seq.tokens), seq.number))


class LongestFirst(tiny.TinyEngine):
    def order(self, waiting):
        return sorted(waiting, key=lambda seq: -len(seq.tokens))


class Forgetful(tiny.TinyEngine):
    def order(self, waiting):
        return sorted(waiting, key=lambda seq: len(seq.tokens))[:1]


class Unwritten(tiny.TinyEngine):
    def order(self, waiting):
        raise NotImplementedError


class Broken(tiny.TinyEngine):
    def order(self, waiting):
        return waiting.sort()


RIGHT: dict[str, list[Any]] = {
    "01-a": [2 * 32 * 8 * 128 * 2 * 8192, float(2**30), np.int64(2**30)],
    "01-b": [attend],
    "02-a": [lambda lengths, size: sum(-(-n // size) for n in lengths)],
    "02-b": [7.5, np.mean(np.arange(16)), torch.tensor(7.5)],
    "03-a": [lambda table, p, size: table[p // size] * size + p % size],
    "03-b": [paged],
    "04-a": [lambda n, prompt, size: n - 1 if prompt % size else 0],
    "05-a": [120],
    "05-b": [plan, lambda *work: tuple(plan(*work))],
    "06-a": [victims],
    "06-b": [lambda tokens, kv, link, prefill: "swap" if 2 * kv / link < 1 / prefill else "recompute"],
    "07-a": [cached_tokens],
    "07-b": [["rules", "product", "user", "time", "question"], ("rules", "product", "user", "question", "time")],
    "08-a": [lambda x, t, noise: int(np.argmax(x / t + noise if t else x))],
    "08-b": [top_p],
    "09-a": [accepted],
    "09-b": [lambda a, k: sum(a**i for i in range(k + 1))],
    "10-a": [rms_norm],
    "10-b": [206, 989 / 4.8],
    "11-a": [quantile],
    "11-b": [1320],
    "12-a": [ShortestFirst],
}

# What people get wrong, and a word of the hint that they have to be given.
WRONG: list[tuple[str, Any, str]] = [
    ("01-a", 32 * 8 * 128 * 2 * 8192, "besides the keys"),
    ("01-a", 2 * 32 * 32 * 128 * 2 * 8192, "Which heads"),
    ("01-a", 2 * 32 * 8 * 128 * 8192, "bfloat16"),
    ("01-a", 2 * 32 * 8 * 128 * 2, "one token"),
    ("01-a", 17, "Not yet"),
    ("01-a", "1 GiB", "a str"),
    ("01-b", lambda q, k, v: (w := np.exp(k @ q / np.sqrt(len(q)))) @ v / w.sum(), "overflow"),
    ("01-b", lambda q, k, v: softmax(k @ q) @ v, "dot products"),
    ("01-b", lambda q, k, v: attend(q, k, k), "values"),
    ("01-b", lambda q, k, v: k @ q / np.sqrt(len(q)) @ v, "one"),
    ("01-b", lambda q, k, v: softmax(k @ q / np.sqrt(len(q))), "shape"),
    ("01-b", lambda q, k, v: 1 / 0, "ZeroDivisionError"),
    ("02-a", lambda lengths, size: -(-sum(lengths) // size), "share"),
    ("02-a", lambda lengths, size: sum(n // size for n in lengths), "last block"),
    ("02-a", lambda lengths, size: sum(n // size + 1 for n in lengths), "exactly"),
    ("02-b", 8, "all 16"),
    ("02-b", 15, "worst"),
    ("03-a", lambda table, p, size: p, "contiguous"),
    ("03-a", lambda table, p, size: table[p // size], "block"),
    ("03-a", lambda table, p, size: table[p // size] + p % size, "before"),
    ("03-b", lambda q, k, v, t, n: paged(q, k, v, t, n, width=len(t) * k.shape[1]), "Garbage"),
    ("03-b", lambda q, k, v, t, n: paged(q, k, v, t, n, head_of=lambda h: h % k.shape[2]), "neighbouring"),
    ("03-b", lambda q, k, v, t, n: paged(q, k, v, t, n, blocks=range(12)), "not in the table"),
    ("03-b", lambda q, k, v, t, n: paged(q, k, v, t, n)[:, :3], "shape"),
    ("04-a", lambda n, prompt, size: n if prompt % size else 0, "still holds"),
    ("04-a", lambda n, prompt, size: n - 1, "exactly"),
    ("04-a", lambda n, prompt, size: (n - 1) * -(-prompt // size) if prompt % size else 0, "only read"),
    ("05-a", 240, "one after the other"),
    ("05-a", 80, "second batch"),
    ("05-b", lambda r, w, b: [min(k - c, b) for c, k in r + w], "more than the budget"),
    ("05-b", lambda r, w, b: plan(w, r, b)[len(w) :] + plan(w, r, b)[: len(w)], "served first"),
    ("05-b", lambda r, w, b: plan(r, [], b) + [0] * len(w), "left over"),
    ("05-b", lambda r, w, b: plan(r, w, b)[: len(r)], "number for each"),
    ("06-a", lambda s, i, free, need: victims(s, i, free, need, key=lambda x: x[1]), "Priority"),
    ("06-a", lambda s, i, free, need: victims(s, i, free, need, key=lambda x: (-x[0], x[1])), "Priority"),
    ("06-a", lambda s, i, free, need: [j for j in victims(s, i, free, need) if j != i], "yields itself"),
    ("06-a", lambda s, i, free, need: victims(s, i, 0, need), "Nobody"),
    ("06-b", lambda tokens, kv, link, prefill: "swap" if kv / link < 1 / prefill else "recompute", "how often"),
    ("06-b", lambda *a: "swap", "how long"),
    ("06-b", lambda *a: True, "is wanted"),
    ("07-a", lambda e, p, b: cached_tokens(e, p, 1), "full blocks"),
    ("07-a", lambda e, p, b: b * sum(any(p[i : i + b] == x[j : j + b] for x in e for j in range(0, len(x), b))
                                     for i in range(0, len(p) - b + 1, b)), "everything before"),
    ("07-b", ["time", "rules", "product", "user", "question"], "new in every request"),
    ("07-b", ["rules", "user", "product", "time", "question"], "before the manual"),
    ("07-b", ["product", "rules", "user", "time", "question"], "Everybody"),
    ("07-b", ["rules", "question"], "five names"),
    ("08-a", lambda x, t, noise: (x / max(t, 1e-9) + noise).argmax() if t else (x + noise).argmax(), "greedy"),
    ("08-a", lambda x, t, noise: ((x + noise) / t).argmax() if t else x.argmax(), "no order"),
    ("08-a", lambda x, t, noise: (x * t + noise).argmax() if t else x.argmax(), "alike"),
    ("08-b", lambda probs, p: top_p(probs, p, strict=True), "carries the sum"),
    ("08-b", lambda probs, p: np.sort(probs)[::-1].cumsum() - np.sort(probs)[::-1] < p, "order of the tokens"),
    ("08-b", lambda probs, p: np.ones(len(probs), bool), "smaller set"),
    ("09-a", lambda d, own: accepted(d, own)[:-1], "one more choice"),
    ("09-a", lambda d, own: own, "wrong history"),
    ("09-b", lambda a, k: 1 + a * k, "third draft"),
    ("09-b", lambda a, k: sum(a**i for i in range(1, k + 1)), "Even if"),
    ("10-a", lambda x, w, eps: rms_norm(x, w, eps, x.dtype), "float16"),
    ("10-a", lambda x, w, eps: rms_norm(x, w, 0.0), "eps"),
    ("10-a", lambda x, w, eps: rms_norm(x[:1], w, eps).expand(x.shape), "three rows"),
    ("10-a", lambda x, w, eps: rms_norm(x, w, eps).double(), "as x is"),
    ("10-b", 103, "multiplied and added"),
    ("10-b", 412, "bytes has"),
    ("11-a", lambda b, q: next(bound for bound, n in b if n >= q * b[-1][1]), "bound"),
    ("11-a", lambda b, q: quantile(b, q) if q != 0.9 or b[0][1] else 2.0, "no upper end"),
    ("11-b", 30, "How many blocks"),
    ("11-b", 528, "How long"),
    ("12-a", LongestFirst, "what is the key"),
    ("12-a", Forgetful, "missing"),
    ("12-a", Unwritten, "Your turn"),
    ("12-a", Broken, "fails"),
    ("12-a", type("Same", (tiny.TinyEngine,), {}), "override"),
    ("12-a", tiny.TinyEngine, "inherits"),
]  # fmt: skip


@pytest.mark.parametrize("exercise", exercises())
def test_right_answers_are_taken(exercise: str) -> None:
    for answer in RIGHT[exercise]:
        verdict = check(exercise, answer)
        assert verdict and "✓" in repr(verdict), verdict


@pytest.mark.parametrize(("exercise", "answer", "word"), WRONG, ids=[f"{e}-{w}" for e, _, w in WRONG])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_answers_get_the_hint_that_helps(exercise: str, answer: Any, word: str) -> None:
    verdict = check(exercise, answer)
    assert not verdict
    assert word in verdict.text


@pytest.mark.parametrize("exercise", exercises())
def test_no_answer_yet(exercise: str) -> None:
    def unwritten(*arguments: Any) -> Any:
        raise NotImplementedError

    for answer in (None, ...):
        assert "Your turn" in check(exercise, answer).text
    if isinstance(RIGHT[exercise][0], type):
        assert "class is wanted" in check(exercise, unwritten).text
    elif isinstance(RIGHT[exercise][0], Callable):
        assert "Your turn" in check(exercise, unwritten).text
        assert "Your turn" in check(exercise, lambda *arguments: None).text
        assert "function is wanted" in check(exercise, 3).text
    else:
        assert not check(exercise, "nonsense")


def test_unknown_exercises_are_refused() -> None:
    for name in ("03-z", "99-a", "03", "", 3):
        with pytest.raises(QuireError, match=r"no such exercise.*01-a, 01-b"):
            check(name, 1)  # type: ignore[arg-type]


def test_arguments_cannot_be_changed_by_an_answer() -> None:
    """An answer that sorts its arguments in place is judged on its result."""

    def careless(earlier, prompt, block_size):
        result = cached_tokens(earlier, prompt, block_size)
        earlier.clear()
        prompt.clear()
        return result

    assert check("07-a", careless)
