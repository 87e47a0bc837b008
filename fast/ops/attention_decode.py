"""Attention for sequences with few queries: split-KV with a work list (after "Flash-Decoding", Dao et al. 2023).

The idea. All query heads that share a K/V head, times the sequence's few queries, are the rows of one small matrix, so
each key is read once for all of them. A single program per (sequence, head) would leave most of the GPU idle when
sequences are few or of unequal length. So the contexts are cut into *pieces* of equal length, and each program takes
one. Which pieces there are is computed on the device from the lengths (``_list_pieces``, once per step): the piece's
length grows with the total, so that there are always about as many programs per processor as suit it, and the launch
grid does not depend on the lengths, which lets a CUDA graph replay it. A sequence of one piece is finished by its
program; where there are several, each leaves its partial result and log-sum-exp, and ``_combine`` adds them up.

Roofline: bound by reading K and V once, 2 * length * Hk * D numbers per sequence. Share of the read bandwidth
(4.36 TB/s) measured on an H200, bf16, by head size: 256 sequences of 840 tokens 92% (D = 128) and 86% (64), of 420 to
1,260 tokens 93% and 85%, 200 of 200 to 1,500 92% and 80%; 255 of 500 and one of 32,768 90% and 78%; 8 of 8,192 84% and
64%. One of 2,048: 9 µs, most of it latency.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, math_dtype, num_processors, overlap
from quire.fast.ops.cache import AttnMeta
from quire.fast.ops.softmax import merge_weights, scores_of, softmax_step

ROWS = 16  # rows of the query matrix: the least that the matrix units multiply
MOST_ROWS = 64  # if all sequences of a step have few queries, as in the verification of drafts
# Programs per processor. Many sequences: enough for long ones to find others that even them out, no more, since every
# cut costs. Few: one wave.
PIECES_PER_PROCESSOR = {"many": 8, "few": 4}
SHORTEST_PIECE = 64
COMBINERS = 8  # programs per processor that add up partial results
KEYS_IN_ORDER = 32  # the tile of keys where orders are fixed: here and in the kernel for many queries


def few_queries(share: int, rows: int = ROWS) -> int:
    """How many queries of one sequence fit into ``rows`` rows, with ``share`` query heads per K/V head."""
    return max(1, rows // share)


@dataclass
class Pieces:
    """The work list. A *piece* is a sequence and a stretch of its positions.

    items   [3, capacity] int32; of each piece the sequence (-1: no such piece), its first position, one after its last.
            A sequence's pieces are equally long and follow each other; inner boundaries are at multiples of
            SHORTEST_PIECE. Long ones come first: what still runs when all else is done should be short.
    first   [S] int32, the first piece of each sequence
    count   [S] int32, how many it has
    cut     [S + 1] int32, how many sequences have several pieces, and which
    """

    items: Tensor
    first: Tensor
    count: Tensor
    cut: Tensor


def list_pieces(
    meta: AttnMeta, kv_heads: int, max_queries: int, window: int | None, block_size: int, fixed: int | None
) -> Pieces:
    """The pieces of all sequences with 1 .. ``max_queries`` queries; computed once per step, kept in the metadata.

    ``fixed``: the length of a piece, if the batch may have no influence on it.
    """
    key = "pieces", kv_heads, max_queries, window, fixed
    if key not in meta.derived:
        sequences, device = len(meta.seq_len), meta.seq_len.device
        processors = num_processors(device)
        number = "many" if sequences * kv_heads >= processors else "few"
        target = triton.cdiv(PIECES_PER_PROCESSOR[number] * processors, kv_heads)
        capacity = target + 2 * sequences  # each sequence's first and last may be partial
        if fixed is not None:
            capacity = sequences * triton.cdiv(meta.block_table.shape[1] * block_size, fixed)
        items = torch.empty(3, capacity, dtype=torch.int32, device=device)
        # Both begin at multiples of 16 bytes: for other addresses kernels are compiled once more.
        first, count, cut = torch.empty(3, triton.cdiv(sequences + 1, 4) * 4, dtype=torch.int32, device=device)
        _list_pieces[(1,)](
            meta.cu_q, meta.seq_len, items, first, count, cut, sequences, max_queries, target, capacity,
            window or (1 << 30), SHORTEST=fixed or SHORTEST_PIECE, FIXED=fixed is not None,
            BLOCK=max(256, triton.next_power_of_2(sequences + 1)), **OVERLAP,
        )  # fmt: skip
        meta.derived[key] = Pieces(items, first, count, cut)
    return meta.derived[key]


@triton.jit(do_not_specialize=["sequences", "max_queries", "target", "capacity"])
def _list_pieces(
    cu_q, seq_len, items, first, counts, cut, sequences, max_queries, target, capacity, window,
    SHORTEST: tl.constexpr, FIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, a lane per sequence."""
    overlap()
    s = tl.arange(0, BLOCK)
    queries = tl.load(cu_q + s + 1, mask=s < sequences, other=0) - tl.load(cu_q + s, mask=s < sequences, other=0)
    end = tl.load(seq_len + s, mask=s < sequences, other=0).to(tl.int32)
    ours = (queries > 0) & (queries <= max_queries)
    begin = tl.maximum(end - queries.to(tl.int32) - window + 1, 0)
    base = begin // SHORTEST * SHORTEST
    length = tl.full([BLOCK], SHORTEST, tl.int32)
    common = SHORTEST
    if not FIXED:
        # A sequence becomes the number of equal pieces that comes closest to the common length: no small remainders.
        total = tl.sum(tl.where(ours, end - base, 0), 0)
        common = tl.maximum(tl.cdiv(tl.cdiv(total, target), SHORTEST), 1) * SHORTEST
        parts = tl.maximum((end - base + common // 2) // common, 1)
        length = tl.maximum(tl.cdiv(tl.cdiv(end - base, parts), SHORTEST), 1) * SHORTEST
    count = tl.where(ours, tl.cdiv(end - base, length), 0)
    tl.store(counts + s, count, mask=s < sequences)
    several = (count > 1).to(tl.int32)
    tl.store(cut, tl.sum(several, 0))
    tl.store(cut + tl.cumsum(several, 0), s, mask=several > 0)

    # In order of length, sorted into four classes.
    begins = tl.zeros([BLOCK], tl.int32)
    listed = 0
    for longer in tl.static_range(3, -1, -1):
        members = tl.where(tl.minimum(2 * length // common, 3) == longer, count, 0)
        begins += tl.where(members > 0, listed + tl.cumsum(members, 0) - members, 0)
        listed += tl.sum(members, 0)
    tl.store(first + s, begins, mask=s < sequences)
    for unused in range(listed, capacity, BLOCK):
        tl.store(items + unused + s, tl.full([BLOCK], -1, tl.int32), mask=unused + s < capacity)
    for i in range(tl.max(count, 0)):
        item = items + begins + i
        start = base + i * length
        tl.store(item, s, mask=i < count)
        tl.store(item + capacity, tl.maximum(start, begin), mask=i < count)
        tl.store(item + 2 * capacity, tl.minimum(start + length, end), mask=i < count)


def attend_few(
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
    max_q: int,
    write: bool,
    fixed: int | None = None,
) -> None:
    """Fill the rows of ``out`` that belong to sequences of at most ``max_q`` queries. Shapes as in ``attention``.

    ``write``: put their k and v into the cache too. It saves a launch per layer; who reads them is in the same program.
    ``fixed``: cut contexts at multiples of this length, and add everything up in an order that depends on nothing else.
    """
    heads, dim = q.shape[1:]
    block_size, kv_heads = k_cache.shape[1:3]
    share, sequences = heads // kv_heads, len(meta.seq_len)
    rows = triton.next_power_of_2(max(ROWS, max_q * share))
    padded = triton.next_power_of_2(max(16, dim))
    pieces = list_pieces(meta, kv_heads, max_q, window, block_size, fixed)
    capacity = pieces.items.shape[1]
    partial = torch.empty(capacity, kv_heads, rows, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(capacity, kv_heads, rows, dtype=torch.float32, device=q.device)
    tiles = _tiles(q.element_size(), padded)
    if fixed is not None:
        tiles["KEYS"] = KEYS_IN_ORDER
    shape = {"SHARE": share, "DIM": dim, "PADDED": padded, "ROWS": rows}
    _attend_few[(capacity * kv_heads,)](
        q, k, v, k_cache, v_cache, out, partial, lse,
        meta.cu_q, meta.seq_len, meta.slot, meta.block_table, pieces.items, pieces.count,
        scale, soft_cap or 0.0, window or 0,
        q.stride(0), k.stride(0), v.stride(0), meta.block_table.stride(0),
        KV_HEADS=kv_heads, BLOCK_SIZE=block_size,
        WINDOWED=window is not None, CAPPED=soft_cap is not None, WRITE=write, IN_ORDER=fixed is not None,
        MATH=math_dtype(q.dtype), **shape, **tiles, **OVERLAP,
    )  # fmt: skip
    most = sequences * kv_heads * max_q * share
    _combine[(min(most, COMBINERS * num_processors(q.device)),)](
        partial, lse, out, meta.cu_q, pieces.first, pieces.count, pieces.cut, kv_heads, max_q * share,
        **shape, PIECES=32 if fixed is None else 1, num_warps=4, **OVERLAP,
    )  # fmt: skip


def _tiles(bytes_per_number: int, padded: int) -> dict[str, int]:
    """Measured on an H200; wide heads and float32 must fit into shared memory."""
    keys = 32 if bytes_per_number == 4 or padded > 128 else 64
    return {"KEYS": keys, "num_warps": 2 if padded <= 64 else 4, "num_stages": 2}


@triton.jit
def _attend_few(
    q, k, v, k_cache, v_cache, out, partial, lse,
    cu_q, seq_len, slot, block_table, items, counts,
    scale, soft_cap, window, stride_q, stride_k, stride_v, stride_table,
    SHARE: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, WRITE: tl.constexpr, IN_ORDER: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """Program (piece, K/V head): the piece's keys against all rows of its sequence.

    Heads come first in the numbering: a position's K for all heads is one stretch of memory, read at about one time.
    """
    overlap()
    item, head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    capacity = tl.num_programs(0) // KV_HEADS
    # Loads that wait for each other are what a short piece spends its time on: three deep to the first key.
    s = tl.load(items + item)
    start = tl.load(items + capacity + item)
    stop = tl.load(items + 2 * capacity + item)
    if s < 0:
        return
    query0 = tl.load(cu_q + s).to(tl.int64)
    queries = (tl.load(cu_q + s + 1) - query0).to(tl.int32)
    past = tl.load(seq_len + s).to(tl.int32) - queries  # the first query's position
    r, d = tl.arange(0, ROWS), tl.arange(0, PADDED)
    real = (r < queries * SHARE)[:, None] & (d < DIM)[None, :]
    row = (query0 + r // SHARE)[:, None] * stride_q + (head * SHARE + r % SHARE)[:, None] * DIM + d[None, :]
    query = tl.load(q + row, mask=real, other=0.0).to(MATH)
    position = past + r // SHARE
    if WRITE and stop > past:
        # The new positions of this piece, one row each. No other program reads or writes them.
        new = past + r
        target = tl.load(slot + query0 + r, mask=r < queries, other=-1).to(tl.int64)
        source = (query0 + r)[:, None]
        mine = ((r < queries) & (new >= start) & (new < stop))[:, None] & (d < DIM)[None, :]
        new_k = tl.load(k + source * stride_k + head * DIM + d[None, :], mask=mine)
        new_v = tl.load(v + source * stride_v + head * DIM + d[None, :], mask=mine)
        cell = (target[:, None] * KV_HEADS + head) * DIM + d[None, :]
        tl.store(k_cache + cell, new_k, mask=mine & (target >= 0)[:, None])
        tl.store(v_cache + cell, new_v, mask=mine & (target >= 0)[:, None])
        tl.debug_barrier()

    m = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PADDED], tl.float32)
    for j in range(start // KEYS * KEYS, stop, KEYS):
        p = j + tl.arange(0, KEYS)
        block = tl.load(block_table + s * stride_table + p // BLOCK_SIZE, mask=p < stop, other=0).to(tl.int64)
        at = ((block * BLOCK_SIZE + p % BLOCK_SIZE) * KV_HEADS + head) * DIM
        cells = at[:, None] + d[None, :]
        mask = (p < stop)[:, None] if DIM == PADDED else (p < stop)[:, None] & (d < DIM)[None, :]
        keys = tl.load(k_cache + cells, mask=mask, other=0.0).to(MATH)
        scores, factor = scores_of(query, keys.T, scale, soft_cap, CAPPED)
        visible = (p < stop)[None, :] & (p[None, :] <= position[:, None])
        if WINDOWED:
            visible &= p[None, :] > position[:, None] - window
        scores = tl.where(visible, scores, float("-inf"))
        values = tl.load(v_cache + cells, mask=mask, other=0.0).to(MATH)
        m, sums, acc = softmax_step(scores, factor, values, m, sums, acc, MASKED=True, IN_ORDER=IN_ORDER)

    result = acc / tl.where(sums == 0, 1.0, sums)[:, None]
    if tl.load(counts + s) == 1:
        to = ((query0 + r // SHARE)[:, None] * KV_HEADS * SHARE + (head * SHARE + r % SHARE)[:, None]) * DIM
        tl.store(out + to + d[None, :], result.to(out.dtype.element_ty), mask=real)
    else:
        at_row = (item.to(tl.int64) * KV_HEADS + head) * ROWS + r
        tl.store(partial + at_row[:, None] * DIM + d[None, :], result, mask=real)
        tl.store(lse + at_row, m + tl.log2(sums), mask=r < queries * SHARE)  # in units of log 2; -inf: saw nothing


@triton.jit(do_not_specialize=["most_rows"])
def _combine(
    partial, lse, out, cu_q, first, counts, cut, kv_heads, most_rows,
    SHARE: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Each program takes some of the (sequence of several pieces, K/V head, row), usually one or none."""
    overlap()
    for task in range(tl.program_id(0), tl.load(cut) * kv_heads * most_rows, tl.num_programs(0)):
        s, head, r = tl.load(cut + 1 + task // (kv_heads * most_rows)), task // most_rows % kv_heads, task % most_rows
        query = tl.load(cu_q + s).to(tl.int64) + r // SHARE
        if query < tl.load(cu_q + s + 1):
            to = out + (query * kv_heads * SHARE + head * SHARE + r % SHARE) * DIM
            begin = tl.load(first + s)
            _combine_row(
                partial, lse, to, begin, begin + tl.load(counts + s), head, r, kv_heads, DIM, PADDED, ROWS, PIECES
            )


@triton.jit
def _combine_row(
    partial, lse, to, begin, end, head, r, kv_heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """The weighted mean of a row's partial results, PIECES of them at a time."""
    d = tl.arange(0, PADDED)
    m = float("-inf")
    total = 0.0
    acc = tl.zeros([PADDED], tl.float32)
    for i in range(begin, end, PIECES):
        item = i + tl.arange(0, PIECES)
        at = (item.to(tl.int64) * kv_heads + head) * ROWS + r
        x = tl.load(lse + at, mask=item < end, other=float("-inf"))
        mask = (x > float("-inf"))[:, None] & (d < DIM)[None, :]
        parts = tl.load(partial + at[:, None] * DIM + d[None, :], mask=mask, other=0.0)
        top = tl.max(x, 0)
        base = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp2(x - base)
        # PIECES of them as one; if that is 1 (fixed orders) these three lines change nothing, bit by bit.
        part = tl.sum(parts * weight[:, None], 0)
        m, shrink, grow = merge_weights(m, top)
        acc = tl.fma(acc, shrink, part * grow)
        total = tl.fma(total, shrink, tl.sum(weight, 0) * grow)
    tl.store(to + d, (acc / total).to(to.dtype.element_ty), mask=d < DIM)
