"""Attention for sequences with many queries whose result does not depend on how the prompt was cut into chunks.

The same tiles, the same online softmax and the same pieces of PIECE positions as in the kernel for few queries, one
after the other: a piece is finished (divided by its sum) before it is merged into the result, exactly as ``_combine``
does it. A query therefore gets the same bits as a decode, in a chunk of any size, among any neighbours. What a tile
computes for keys that its row does not see are exact zeros.

That the two kernels may use different numbers of rows rests on a property of the matrix units, tested on the H200: a
row of a product has the same bits in every shape of tile, whichever of the two matrix instructions works on it.

Roofline: the matrix units, as in ``attention_prefill``; this one reads all keys through the block table. Measured on
an H200: 1.9 times the time of ``attention_prefill`` for a prompt of 2,048 tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import math_dtype
from quire.fast.ops.attention_decode import KEYS_IN_ORDER
from quire.fast.ops.attention_prefill import find_tile
from quire.fast.ops.cache import AttnMeta
from quire.fast.ops.softmax import merge_weights, scores_of, softmax_step


def attend_many_in_order(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    out: Tensor,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    *,
    piece: int,
    fewer_handled: int,
) -> None:
    """Fill the rows of ``out`` that belong to sequences of more than ``fewer_handled`` queries. The K/V is written."""
    tokens, heads, dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    sequences, padded = len(meta.seq_len), triton.next_power_of_2(max(16, dim))
    queries = 32 if q.element_size() == 4 else 64
    _attend_many_in_order[(tokens // queries + sequences, heads)](
        q, k_cache, v_cache, out, meta.cu_q, meta.seq_len, meta.block_table,
        sequences, scale, soft_cap or 0.0, window or (1 << 30), q.stride(0), meta.block_table.stride(0), fewer_handled,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, PADDED=padded, BLOCK_SIZE=block_size, QUERIES=queries,
        KEYS=KEYS_IN_ORDER, PIECE=piece, CAPPED=soft_cap is not None, MATH=math_dtype(q.dtype),
        num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit(do_not_specialize=["sequences"])
def _attend_many_in_order(
    q, k_cache, v_cache, out, cu_q, seq_len, block_table,
    sequences, scale, soft_cap, window, stride_q, stride_table, fewer_handled,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PIECE: tl.constexpr, CAPPED: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Program (tile of queries, query head)."""
    tile, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    s, query0, queries, row0 = find_tile(cu_q, sequences, tile, QUERIES)
    if (queries <= fewer_handled) | (row0 >= queries):
        return
    end = tl.load(seq_len + s).to(tl.int32)
    r, d = row0 + tl.arange(0, QUERIES), tl.arange(0, PADDED)
    position = end - queries + r
    real = (r < queries)[:, None] & (d < DIM)[None, :]
    row = (query0 + r).to(tl.int64)[:, None]
    query = tl.load(q + row * stride_q + head * DIM + d[None, :], mask=real, other=0.0).to(MATH)
    first = end - queries + row0
    seen = tl.maximum(first - window + 1, 0)
    stop = tl.minimum(first + QUERIES, end)

    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, PADDED], tl.float32)
    for start in range(seen // PIECE * PIECE, stop, PIECE):
        m = tl.full([QUERIES], float("-inf"), tl.float32)
        sums = tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([QUERIES, PADDED], tl.float32)
        for j in range(tl.maximum(start, seen // KEYS * KEYS), tl.minimum(start + PIECE, stop), KEYS):
            p = j + tl.arange(0, KEYS)
            block = tl.load(block_table + s * stride_table + p // BLOCK_SIZE, mask=p < stop, other=0).to(tl.int64)
            at = ((block * BLOCK_SIZE + p % BLOCK_SIZE) * KV_HEADS + kv_head) * DIM
            cells = at[:, None] + d[None, :]
            mask = (p < stop)[:, None] & (d < DIM)[None, :]
            keys = tl.load(k_cache + cells, mask=mask, other=0.0).to(MATH)
            scores, factor = scores_of(query, keys.T, scale, soft_cap, CAPPED)
            visible = (p < stop)[None, :] & (p[None, :] <= position[:, None])
            visible &= p[None, :] > position[:, None] - window
            scores = tl.where(visible, scores, float("-inf"))
            values = tl.load(v_cache + cells, mask=mask, other=0.0).to(MATH)
            m, sums, acc = softmax_step(scores, factor, values, m, sums, acc, MASKED=True, IN_ORDER=True)
        part = acc / tl.where(sums == 0, 1.0, sums)[:, None]
        top, shrink, grow = merge_weights(top, m + tl.log2(sums))
        result = tl.fma(result, shrink[:, None], part * grow[:, None])
        total = tl.fma(total, shrink, grow)
    to = (row * HEADS + head) * DIM + d[None, :]
    tl.store(out + to, (result / total[:, None]).to(out.dtype.element_ty), mask=real)
