"""Exercises of notebooks 01 (attention, the KV cache) and 03 (block tables, paged attention)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from quire.learn.answers import Wrong, array, call, function, number, one_of

F64 = npt.NDArray[np.float64]


def kv_bytes(answer: Any) -> str:
    """01-a: bytes of K/V for 8,192 tokens of Llama-3-8B: 32 layers, 32 query and 8 KV heads of 128, 2 bytes each."""
    layers, heads, kv_heads, dim, size, tokens = 32, 32, 8, 128, 2, 8192
    right = 2 * layers * kv_heads * dim * size * tokens
    given = number(answer)
    if given == right:
        return "Right: exactly one GiB, for one conversation. Sixteen of them take as much memory as the weights."
    raise one_of(
        given,
        {
            right / 2: "Half of it is missing. What does attention read besides the keys, and how large is a bfloat16?",
            right * heads / kv_heads: "Which heads are stored? Several query heads read the same keys.",
            right / 2 * heads / kv_heads: "Which heads are stored, and is it only keys that are?",
            right / tokens: "That is one token. There are 8,192 of them.",
            right / layers: "That is one layer. Each has keys and values of its own.",
            right * 8: "Those are bits.",
        },
        "Not yet. Multiply: what is stored per head, the heads that are stored, layers, tokens, bytes per number.",
    )


def softmax(scores: F64) -> F64:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attend(answer: Any) -> str:
    """01-b: attention of one query [D] over keys and values [L, D]."""
    f = function(answer)
    rng = np.random.default_rng(1)
    for length, dim, size in ((1, 4, 1.0), (5, 4, 1.0), (40, 64, 1.0), (7, 16, 4000.0)):
        q, k, v = (rng.normal(size=shape) for shape in ((dim,), (length, dim), (length, dim)))
        q *= size
        got, scores = array(call(f, q, k, v), (dim,)), k @ q / np.sqrt(dim)
        right = softmax(scores) @ v
        if np.allclose(got, right, atol=1e-6):
            continue
        if size > 1:
            raise Wrong("Right for small scores. For large ones exp overflows: softmax may subtract the same from all.")
        if np.allclose(got, softmax(k @ q) @ v, atol=1e-6):
            raise Wrong("Nearly. With 64 numbers per head the dot products grow large; what tames them?")
        if np.allclose(got, softmax(scores) @ k, atol=1e-6):
            raise Wrong("The weights are right, but they have to mix the values.")
        if np.allclose(got, scores @ v, atol=1e-6):
            raise Wrong("The scores are right. They have to become weights that add up to one.")
        raise Wrong(f"For {length} keys of {dim} numbers the result differs. Scores, softmax, weighted mean of values.")
    return "Right, and stable. This is all that a decode step does with the cache, per head and layer."


def dense(q: F64, keys: F64, values: F64, owner: list[int]) -> F64:
    """Attention of q [Hq, D] over keys and values in order [L, Hk, D]; query head h reads K/V head owner[h]."""
    dim = q.shape[1]
    rows = [softmax(keys[:, k] @ q[h] / np.sqrt(dim)) @ values[:, k] for h, k in enumerate(owner)]
    return np.stack(rows)


def slot(answer: Any) -> str:
    """03-a: the slot of a position."""
    f = function(answer)
    for table, position, size in (
        ([7], 5, 16),
        ([7], 0, 16),
        ([7], 15, 16),
        ([7, 3], 16, 16),
        ([9, 2, 5], 44, 16),
        ([4, 1], 5, 4),
    ):
        right = table[position // size] * size + position % size
        got = number(call(f, table, position, size))
        if got == right:
            continue
        about = f"Position {position} with table {table} and blocks of {size}: "
        if got == position:
            raise Wrong(about + "that is where a contiguous cache would have it. Which block holds the position?")
        if got == table[position // size]:
            raise Wrong(about + "that is the block. A slot counts slots from the beginning of the cache.")
        if got == table[position // size] + position % size:
            raise Wrong(about + "how many slots lie before the block's first one?")
        raise Wrong(about + f"slot {got:g} is not it. Which entry of the table, and where in the block?")
    return "Right. Two integer operations per token: this is all the address translation there is."


def paged_attention(answer: Any) -> str:
    """03-b: a decode's attention through a block table, grouped query heads, garbage in unused slots."""
    f = function(answer)
    rng = np.random.default_rng(3)
    for heads, kv_heads, length, size in ((1, 1, 16, 16), (1, 1, 37, 16), (8, 8, 21, 4), (8, 2, 50, 16), (6, 3, 1, 8)):
        dim, blocks = 8, 12 if size > 4 else 20
        table = rng.permutation(np.arange(1, blocks))[: -(-length // size)]
        caches = rng.normal(size=(2, blocks, size, kv_heads, dim))
        slots = [(table[p // size], p % size) for p in range(length)]
        used = np.zeros((blocks, size), bool)
        used[tuple(np.transpose(slots))] = True
        caches[:, ~used] = np.nan
        keys, values = (np.stack([c[s] for s in slots]) for c in caches)
        q = rng.normal(size=(heads, dim))
        got = array(call(f, q, *caches, table.tolist(), length), (heads, dim))

        share = heads // kv_heads
        owner = [h // share for h in range(heads)]
        if np.allclose(got, dense(q, keys, values, owner), atol=1e-6):
            continue
        about = f"{heads} query heads, {kv_heads} K/V heads, {length} tokens in blocks of {size}: "
        if np.isnan(got).any():
            raise Wrong(about + "NaN. Garbage was read: slots behind the length, or blocks that are not in the table.")
        if np.allclose(got, dense(q, keys, values, [h % kv_heads for h in range(heads)]), atol=1e-6):
            raise Wrong(about + "neighbouring query heads share a K/V head: with 8 and 2, heads 0 to 3 read head 0.")
        raise Wrong(about + "the result differs from attention over the same keys and values laid out in order.")
    return "Right: this is PagedAttention. The kernels differ from it in speed, and in nothing else."


CHECKS: dict[str, Callable[[Any], str]] = {
    "01-a": kv_bytes,
    "01-b": attend,
    "03-a": slot,
    "03-b": paged_attention,
}
