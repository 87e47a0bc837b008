"""Attention for sequences with many queries: a tile of queries per program, keys streamed past it.

The idea is FlashAttention-2's (Dao 2023): a program keeps 64 queries of one head and walks over the keys they may see,
one tile at a time. The keys come from two places. What earlier steps computed, the *past*, is in the cache and is
gathered through the block table, with an address per row. What this step computed, the chunk's *own* keys, also stands
in k and v as dense rows, and there the copy engine fetches whole tiles by a tensor descriptor: no addresses, no
registers, and a third faster. A prompt that fits in one chunk is all own. (Head sizes that are no power of two read
their own keys from the cache as well: a descriptor's box must be one.)

Only tiles on the diagonal need the causal mask; they come last in a loop of their own. Tiles near the end of a prompt
have the most keys, so programs are numbered from the end: the long ones start first and the short ones fill the gaps.

Roofline: bound by the matrix units, 4 * D operations for each visible (query, key) pair and head. Measured on an
H200 with 8,192 tokens: 430 to 455 TFLOP/s with head size 128, which is 56 to 64% of a large matrix product in the same
run; 380 to 400 with 64. 2,048 tokens fill the GPU badly: 230 to 280. 2,048 tokens after 6,144 in the cache: 350 to 370.
(torch's own kernel, dense and without a cache: 540 and 440.)
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire.fast.device import math_dtype
from quire.fast.ops.cache import AttnMeta
from quire.fast.ops.softmax import scores_of, softmax_step


def attend_many(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    out: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    *,
    fewer_handled: int,
) -> None:
    """Fill the rows of ``out`` that belong to sequences of more than ``fewer_handled`` queries. The K/V is written.

    Shapes as in ``attention``.
    """
    tokens, heads, dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    sequences, padded = len(meta.seq_len), triton.next_power_of_2(max(16, dim))
    tiles = _tiles(q.element_size(), padded)
    queries, keys = tiles["QUERIES"], tiles["KEYS"]
    dense = padded == dim and k.dtype == k_cache.dtype and all(_describable(x) for x in (k, v))
    boxes = [
        TensorDescriptor(x, [tokens, kv_heads * dim], [x.stride(0), 1], [keys, padded]) if dense else x for x in (k, v)
    ]
    grid = tokens // queries + sequences, heads  # see find_tile
    _attend_many[grid](
        q, *boxes, k_cache, v_cache, out, meta.cu_q, meta.seq_len, meta.slot, meta.block_table,
        sequences, scale, soft_cap or 0.0, window or 0, q.stride(0), meta.block_table.stride(0), fewer_handled,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, PADDED=padded, BLOCK_SIZE=block_size,
        WINDOWED=window is not None, CAPPED=soft_cap is not None, DENSE=dense, MATH=math_dtype(q.dtype), **tiles,
    )  # fmt: skip


def _tiles(bytes_per_number: int, padded: int) -> dict[str, int]:
    """Measured on an H200; wide heads and float32 must fit into shared memory."""
    if bytes_per_number == 4:
        return {"QUERIES": 32, "KEYS": 32, "num_warps": 4, "num_stages": 2}
    return {"QUERIES": 64, "KEYS": 32 if padded > 128 else 64, "num_warps": 4, "num_stages": 2 if padded > 128 else 3}


def _describable(x: Tensor) -> bool:
    """Whether the copy engine takes it: 16-byte alignment of the start and of every row."""
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


@triton.jit(do_not_specialize=["sequences"])
def _attend_many(
    q, k, v, k_cache, v_cache, out, cu_q, seq_len, slot, block_table,
    sequences, scale, soft_cap, window, stride_q, stride_table, fewer_handled,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr, DENSE: tl.constexpr,
    MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries, query head); k and v are descriptors if DENSE."""
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)

    s, query0, queries, row0 = find_tile(cu_q, sequences, tile, QUERIES)
    if (queries <= fewer_handled) | (row0 >= queries):
        return

    end = tl.load(seq_len + s).to(tl.int32)
    past = end - queries
    if (not DENSE) or tl.load(slot + query0) < 0:
        past = end  # everything is read from the cache
    r, d = row0 + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    position = end - queries + r
    position0 = end - queries + row0
    real = (r < queries)[:, None] & (d < DIM)[None, :]
    row = (query0 + r).to(tl.int64)[:, None]
    query = tl.load(q + row * stride_q + head * DIM + d[None, :], mask=real, other=0.0).to(MATH)
    m = tl.full([QUERIES], float("-inf"), tl.float32)
    sums = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, PADDED], tl.float32)

    # Four stretches of keys: the past and the own ones, and of each first the whole tiles that every query sees.
    past_end = tl.minimum(past, tl.minimum(position0 + QUERIES, end))
    past_start = 0
    past_full = tl.minimum(past, position0 + 1) // KEYS * KEYS
    if WINDOWED:
        past_start = tl.maximum(position0 - window + 1, 0) // KEYS * KEYS
        past_full = past_start
    for j in range(past_start, past_full, KEYS):
        p = j + tl.arange(0, KEYS)
        block = tl.load(block_table + s * stride_table + p // BLOCK_SIZE).to(tl.int64)
        at = ((block * BLOCK_SIZE + p % BLOCK_SIZE) * KV_HEADS + kv_head) * DIM
        keys = tl.load(k_cache + at[None, :] + d[:, None], mask=(d < DIM)[:, None], other=0.0)
        scores, factor = scores_of(query, keys.to(MATH), scale, soft_cap, CAPPED)
        values = tl.load(v_cache + at[:, None] + d[None, :], mask=(d < DIM)[None, :], other=0.0)
        m, sums, acc = softmax_step(scores, factor, values.to(MATH), m, sums, acc, MASKED=False)
    for j in range(past_full, past_end, KEYS):
        p = j + tl.arange(0, KEYS)
        inside = p < past_end
        block = tl.load(block_table + s * stride_table + p // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        at = ((block * BLOCK_SIZE + p % BLOCK_SIZE) * KV_HEADS + kv_head) * DIM
        keys = tl.load(k_cache + at[None, :] + d[:, None], mask=inside[None, :] & (d < DIM)[:, None], other=0.0)
        scores, factor = scores_of(query, keys.to(MATH), scale, soft_cap, CAPPED)
        visible = inside[None, :] & (p[None, :] <= position[:, None])
        if WINDOWED:
            visible &= p[None, :] > position[:, None] - window
        scores = tl.where(visible, scores, float("-inf"))
        values = tl.load(v_cache + at[:, None] + d[None, :], mask=inside[:, None] & (d < DIM)[None, :], other=0.0)
        m, sums, acc = softmax_step(scores, factor, values.to(MATH), m, sums, acc, MASKED=True)

    if DENSE:  # from here on keys are counted from the chunk's first
        own_end = tl.where(past < end, tl.minimum(row0 + QUERIES, queries), 0)
        own_start = 0
        own_full = tl.minimum(own_end, row0 // KEYS * KEYS)
        if WINDOWED:
            own_start = tl.maximum(row0 - window + 1, 0) // KEYS * KEYS
            own_full = own_start
        for j in range(own_start, own_full, KEYS):
            keys = k.load([query0 + j, kv_head * DIM])
            scores, factor = scores_of(query, keys.to(MATH).T, scale, soft_cap, CAPPED)
            values = v.load([query0 + j, kv_head * DIM])
            m, sums, acc = softmax_step(scores, factor, values.to(MATH), m, sums, acc, MASKED=False)
        for j in range(own_full, own_end, KEYS):
            p = j + tl.arange(0, KEYS)
            keys = k.load([query0 + j, kv_head * DIM])
            scores, factor = scores_of(query, keys.to(MATH).T, scale, soft_cap, CAPPED)
            visible = p[None, :] <= r[:, None]
            if WINDOWED:
                visible &= p[None, :] > r[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
            values = v.load([query0 + j, kv_head * DIM]).to(MATH)
            # Rows after the chunk are another sequence's, or padding: 0 * NaN would be NaN.
            values = tl.where((p < queries)[:, None], values, 0.0)
            m, sums, acc = softmax_step(scores, factor, values, m, sums, acc, MASKED=True)

    tl.store(out + (row * HEADS + head) * DIM + d[None, :], (acc / sums[:, None]).to(out.dtype.element_ty), mask=real)


@triton.jit
def find_tile(cu_q, sequences, tile, QUERIES: tl.constexpr):
    """The sequence of a tile, where its queries begin, how many there are, and which of them is the tile's first.

    Sequence s begins with tile cu_q[s] // QUERIES + s, so the last one to do so at or before ``tile`` is looked up by
    bisection. The tile's first query may lie behind the sequence's last: then the tile is one of the spare ones.
    """
    low, high = 0, sequences
    while low < high:
        middle = (low + high) // 2
        if (tl.load(cu_q + middle) // QUERIES + middle).to(tl.int32) <= tile:
            low = middle + 1
        else:
            high = middle
    s = low - 1
    query0 = tl.load(cu_q + s).to(tl.int32)
    return s, query0, tl.load(cu_q + s + 1).to(tl.int32) - query0, (tile - (query0 // QUERIES + s)) * QUERIES
