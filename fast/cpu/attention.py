"""Causal attention over the paged KV cache that reads keys and values where they are.

The idea. torch attends to dense tensors only, so the reference copies the blocks of every sequence into one before it
attends: it reads the context, writes it, and reads it again. A loop of our own (``attend``) follows the block
table instead: 16 keys at a time are located (or widened to float32, if the cache is 16 bits wide) for all heads, then
every query row of the piece meets them, while the processor is told to fetch the next 16, because it cannot guess where
a block table leads. The scores of a row are kept whole, so there is no running maximum; the values are read in a second
pass.

Decodes are bound by reading K and V. 64 sequences of 108 tokens, 4 K/V heads of 64, one core that reads 15 GB/s:
float32 1.43 ms, 9.9 GB/s, 66% (without fetching 1.83 ms); bfloat16 0.85 ms, 8.3 GB/s, 55% (1.25 ms), where the
arithmetic alone takes 0.65. To copy and attend takes about twice as long.

A prompt chunk is bound by arithmetic, and there torch's matrix products are the faster ones: a sequence with more than
FEW queries is gathered and goes through torch's attention, one call per 256 queries, in which the copy is small change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.fast.cpu.attend import attend
from quire.fast.cpu.cache import write_kv
from quire.fast.cpu.kernels import KINDS
from quire.fast.cpu.launch import empty_result, rows_dense, threads_for
from quire.fast.metadata import AttnMeta

FEW = 32  # queries of one sequence
CHUNK = 256  # queries that go through torch's attention at once: the first need not see the keys of the last
GRAIN = 1 << 16  # products per thread, at the least
EVERYTHING = 1 << 40


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Write this step's keys and values to the cache, then let every query attend to its sequence up to itself.

    q [T, Hq, D]; k and v [T, Hk, D], Hq a multiple of Hk; caches [num_blocks, block_size, Hk, D], written through
    ``meta.slot``. Scores are multiplied by ``scale``; ``soft_cap`` c then replaces a score s by c * tanh(s / c);
    ``window`` w lets a query at position p see the positions p - w + 1 .. p only. -> [T, Hq, D] in q's dtype; padding
    rows are zero.
    """
    few = FEW if soft_cap is None else EVERYTHING  # torch's attention knows no cap
    write_kv(k, v, k_cache, v_cache, meta.slot)
    out = attend_few(q, k_cache, v_cache, meta, scale, window, soft_cap, few)
    step = on_host(meta)
    for s, (n, length) in enumerate(zip(step.counts, step.lengths)):
        for begin in range(0, n if n > few else 0, CHUNK):
            m = min(CHUNK, n - begin)
            rows = slice(step.first_row[s] + begin, step.first_row[s] + begin + m)
            out[rows] = _attend_dense(q[rows], k_cache, v_cache, step.table[s], length - n + begin, scale, window)
    return out


@dataclass(frozen=True)
class Step:
    """A step's metadata as this plane reads it: int64 tensors, and what the host decides by."""

    cu_q: Tensor
    seq_len: Tensor
    table: Tensor
    first_row: list[int]
    counts: list[int]
    lengths: list[int]


def on_host(meta: AttnMeta) -> Step:
    """Derived by the first layer of a step, and kept in ``meta`` for the others."""
    if "cpu" not in meta.derived:
        cu_q, seq_len = meta.cu_q.long(), meta.seq_len.long()
        rows, counts = cu_q.tolist(), cu_q.diff().tolist()
        meta.derived["cpu"] = Step(cu_q, seq_len, meta.block_table.long().contiguous(), rows, counts, seq_len.tolist())
    return meta.derived["cpu"]


def attend_few(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    most: int,
) -> Tensor:
    """Attention of the sequences with up to ``most`` queries, as ``attention``; other rows of the result are unset.

    A query's result does not depend on the other queries, nor on block size and batch: bit by bit.
    """
    step = on_host(meta)
    q = rows_dense(q)
    block_size, kv_heads, dim = k_cache.shape[1:]
    share = q.shape[1] // kv_heads
    out = empty_result(q.shape, q.dtype)
    few = [(n, length) for n, length in zip(step.counts, step.lengths) if n <= most]
    if few:
        threads = threads_for(sum(n * length for n, length in few) * q.shape[1] * dim * 2, GRAIN)
        heads = kv_heads
        while heads % 2 == 0 and len(few) * kv_heads < 4 * threads * heads:  # fewer heads at once, more pieces of work
            heads //= 2
        attend(
            q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(), step.cu_q.data_ptr(),
            step.seq_len.data_ptr(), step.table.data_ptr(), len(step.counts), step.table.shape[1], kv_heads, share,
            dim, block_size, q.stride(0), KINDS[q.dtype], KINDS[k_cache.dtype], KINDS[out.dtype],
            EVERYTHING if window is None else window, most, max(length for _, length in few), heads, scale,
            soft_cap or 0, threads=threads,
        )  # fmt: skip
    if step.first_row[-1] < len(q):
        out[step.first_row[-1] :] = 0
    return out.to(q.dtype)


def _attend_dense(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, table: Tensor, position: int, scale: float, window: int | None
) -> Tensor:
    """Queries q [n, Hq, D] of one sequence, the first at ``position``, by torch's attention over gathered blocks."""
    n, block_size = len(q), k_cache.shape[1]
    first, end = 0 if window is None else max(0, position - window + 1), position + n
    blocks = table[first // block_size : -(-end // block_size)]
    begin = first // block_size * block_size
    keys, values = (
        cache.index_select(0, blocks).flatten(0, 1)[first - begin : end - begin].to(q.dtype).transpose(0, 1)
        for cache in (k_cache, v_cache)
    )
    mask = None
    if first < position or window is not None:
        key, query = torch.arange(first, end), torch.arange(position, end).unsqueeze(1)
        mask = key <= query if window is None else (key <= query) & (key > query - window)
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask,
        is_causal=mask is None, scale=scale, enable_gqa=True,
    )  # fmt: skip
    return mixed[0].transpose(0, 1)
