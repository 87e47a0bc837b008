"""Causal attention over the paged KV cache, for prompt chunks and decodes alike.

There is no prefill kernel and no decode kernel here. A step's sequences are sorted into *groups* that have the same
number of query rows and similar lengths; each group gathers its keys and values through the block tables into one
dense tensor and calls torch's own softmax attention on it. All decodes of similar length are one group, so the Python
loop is over a handful of groups and not over sequences.

Slots beyond a sequence's length may hold anything, NaN included, and 0 * NaN is NaN: a mask alone would not keep it
out. The gather therefore never reads there; it repeats the sequence's last position instead and masks the repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.reference.ops.cache import AttnMeta, write_kv

# Gathers of this size stay in the processor's caches and within what malloc recycles. (64 sequences of 300 tokens with
# 8 heads of 64 in float32: 25 ms as a single gather of 39 MB, 8 ms in pieces of 2 MB.)
GATHER_BYTES = 2 << 20
QUERY_CHUNK = 256  # longer prompt chunks are cut, so that the first queries skip the keys that only the last ones see


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
    """
    write_kv(k, v, k_cache, v_cache, meta.slot)
    kv_heads, dim = k.shape[1:]
    share = q.shape[1] // kv_heads  # query heads per K/V head
    row_bytes = kv_heads * dim * k_cache.element_size()
    out = torch.zeros_like(q)
    for group in groups_of(meta, k_cache.shape[1], window, max_tokens=GATHER_BYTES // row_bytes):
        g, n, _ = group.mask.shape
        keys, values = (group.gather(cache).to(q.dtype) for cache in (k_cache, v_cache))  # [g, Hk, length, D]
        # The query heads that share a K/V head become further query rows of it.
        rows = q.index_select(0, group.rows).view(g, n, kv_heads, share, dim)
        queries = rows.transpose(1, 2).reshape(g, kv_heads, n * share, dim)
        if soft_cap is None:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.folded(share), scale=scale)
        else:
            scores = (queries.float() @ keys.float().transpose(2, 3)) * scale
            scores = soft_cap * torch.tanh(scores / soft_cap)
            mask = group.folded(share)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            mixed = (scores.softmax(-1) @ values.float()).to(q.dtype)
        mixed = mixed.view(g, kv_heads, n, share, dim).transpose(1, 2).reshape(g * n, kv_heads * share, dim)
        out.index_copy_(0, group.rows, mixed)
    return out


@dataclass
class Group:
    """``g`` sequences with ``n`` query rows each, and the keys that those queries may see.

    rows   [g * n] rows of q, sequence by sequence
    slots  [g * length] flat slots of the cache, from each sequence's first visible position on
    mask   [g, n, length] bool: query i of the sequence sees key j
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor

    def gather(self, cache: Tensor) -> Tensor:
        """The group's K or V as [g, Hk, length, D] (a view with the heads brought forward)."""
        g, _, length = self.mask.shape
        return cache.flatten(0, 1).index_select(0, self.slots).view(g, length, *cache.shape[2:]).transpose(1, 2)

    @cached_property
    def everything_visible(self) -> bool:
        return bool(self.mask.all())

    def folded(self, share: int) -> Tensor | None:
        """The mask [g, 1, n * share or 1, length] for rows in which ``share`` heads are folded; None if all true."""
        if self.everything_visible:
            return None
        if self.mask.shape[1] == 1 or share == 1:
            return self.mask.unsqueeze(1)
        return self.mask.repeat_interleave(share, dim=1).unsqueeze(1)


def groups_of(
    meta: AttnMeta,
    block_size: int,
    window: int | None,
    max_tokens: int,
    *,
    query_chunk: int = QUERY_CHUNK,
    key_tile: int = 1,
) -> Sequence[Group]:
    """Sort the step's sequences into groups; computed by the first layer of a step and kept in ``meta`` for the others.

    A group gathers at most ``max_tokens`` keys in total (one sequence may exceed it). With ``key_tile`` every
    sequence's keys start at a multiple of it and the group's length is a multiple of it.
    """
    key = (block_size, window, max_tokens, query_chunk, key_tile)
    if key not in meta.derived:
        meta.derived[key] = list(_make_groups(meta, *key))
    return meta.derived[key]


def _make_groups(
    meta: AttnMeta, block_size: int, window: int | None, max_tokens: int, chunk: int, tile: int
) -> Iterator[Group]:
    cu_q, seq_len = meta.cu_q.tolist(), meta.seq_len.tolist()
    pieces: list[tuple[int, int, int, int, int]] = []  # (queries, keys, sequence, first row, first key)
    for s, length in enumerate(seq_len):
        count = cu_q[s + 1] - cu_q[s]
        for done in range(0, count, chunk):
            n = min(chunk, count - done)
            first_query = length - count + done
            first_key = 0 if window is None else max(0, first_query - window + 1) // tile * tile
            pieces.append((n, first_query + n - first_key, s, cu_q[s] + done, first_key))
    pieces.sort()
    members: list[tuple[int, int, int, int, int]] = []
    for piece in pieces:
        n, keys = piece[:2]
        # Members are padded to the longest, which is the last: keep the group small and the lengths similar.
        full = (len(members) + 1) * keys > max_tokens
        if members and (n != members[0][0] or full or keys > 2 * members[0][1] + 64):
            yield _make_group(meta, members, block_size, window, tile)
            members = []
        members.append(piece)
    if members:
        yield _make_group(meta, members, block_size, window, tile)


def _make_group(
    meta: AttnMeta, members: list[tuple[int, int, int, int, int]], block_size: int, window: int | None, tile: int
) -> Group:
    device = meta.block_table.device
    n, longest = members[-1][:2]
    keys, seqs, first_row, first_key = (torch.tensor(c, device=device) for c in list(zip(*members))[1:])
    end = (first_key + keys).unsqueeze(1)  # one after the last query's position, [g, 1]
    rows = first_row.unsqueeze(1) + torch.arange(n, device=device)
    position = first_key.unsqueeze(1) + torch.arange(-(-longest // tile) * tile, device=device)  # [g, length]
    readable = torch.minimum(position, end - 1)
    blocks = meta.block_table[seqs].gather(1, readable // block_size)
    query = (end - n + torch.arange(n, device=device)).unsqueeze(2)  # [g, n, 1]
    mask = position.unsqueeze(1) <= query
    if window is not None:
        mask &= position.unsqueeze(1) > query - window
    return Group(rows.flatten(), (blocks * block_size + readable % block_size).flatten(), mask)
