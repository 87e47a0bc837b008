"""Causal attention over the paged KV cache: one op for prompt chunks and decodes, two kernels behind it.

A decode has one query per sequence (a few, with speculation) and reads a long context: it is bound by *reading the
cache*, and what matters is that all processors read all the time. ``attention_decode`` cuts the contexts into equal
pieces for that. A prompt chunk has many queries for the same keys: it is bound by *multiplying*, and what matters is
that the matrix units never wait. ``attention_prefill`` gives each program a tile of queries.

Both kernels are launched over the whole ragged batch and pass over sequences of the other kind, which they tell by the
number of query rows on the device. So a mixed step needs no sorting, and one CUDA graph serves any mixture. Only the
host's bound ``meta.max_q`` decides whether the prefill kernel is needed at all.

Both compute the softmax online (Milakov & Gimelshein 2018; Dao et al. 2022, "FlashAttention"): a running maximum m, a
running sum l of exp(score - m), and the running weighted sum of values, rescaled whenever m grows.
"""

from __future__ import annotations

from torch import Tensor

from quire.fast.ops.attention_decode import MOST_ROWS, attend_few, few_queries
from quire.fast.ops.attention_prefill import attend_many
from quire.fast.ops.cache import AttnMeta, write_kv


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

    q [T, Hq, D]; k and v [T, Hk, D], Hq a multiple of Hk (grouped-query attention: query head h reads K/V head
    h // (Hq / Hk)); caches [num_blocks, block_size, Hk, D], written through ``meta.slot``. Scores are multiplied by
    ``scale``; ``soft_cap`` c then replaces a score s by c * tanh(s / c); ``window`` w lets a query at position p see
    the positions p - w + 1 .. p only. -> [T, Hq, D] in q's dtype; padding rows are zero.

    q, k and v may be views into wider rows (a fused projection's output), as long as one token's heads are contiguous.
    """
    q, k, v = rows_contiguous(q), rows_contiguous(k), rows_contiguous(v)
    max_q = len(q) if meta.max_q is None else meta.max_q
    share = q.shape[1] // k.shape[1]
    few = few_queries(share)
    out = q.new_zeros(q.shape) if meta.padded else q.new_empty(q.shape)
    if max_q <= few_queries(share, MOST_ROWS):
        attend_few(q, k, v, k_cache, v_cache, meta, out, scale, window, soft_cap, max_q=max_q, write=True)
    else:
        write_kv(k, v, k_cache, v_cache, meta.slot)
        attend_many(q, k, v, k_cache, v_cache, meta, out, scale, window, soft_cap, fewer_handled=few)
        if len(meta.seq_len) > 1 or meta.padded or len(q) <= few:
            attend_few(q, k, v, k_cache, v_cache, meta, out, scale, window, soft_cap, max_q=few, write=False)
    return out


def rows_contiguous(x: Tensor) -> Tensor:
    """x [T, H, D] with each token's heads in one stretch: itself, or a copy."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
