"""The paged KV cache as the ops see it (Kwon et al. 2023, "PagedAttention").

The cache of one layer is a pair of tensors [num_blocks, block_size, kv_heads, head_dim]. A sequence owns a list of
blocks, its *block table*: position p lives in block ``table[p // block_size]`` at offset ``p % block_size``. The pair
(block, offset) flattened, ``block * block_size + offset``, is a *slot*. Block 0 is the null block: it belongs to nobody
and takes every write that is not wanted.

``AttnMeta`` says where this step's tokens stand in that cache. It is an explicit argument of ``attention``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class AttnMeta:
    """One step's ragged batch of S sequences and T tokens.

    cu_q         [S + 1] int32/int64; sequence s has the query rows cu_q[s] .. cu_q[s + 1] - 1 (rows after the last
                 are padding). They are the last positions before seq_len[s].
    seq_len      [S] tokens of K/V after this step's tokens have been written
    block_table  [S, M] int; entries beyond ceil(seq_len / block_size) are never read
    slot         [T] int; where each token's K/V goes; -1 = do not write
    """

    cu_q: Tensor
    seq_len: Tensor
    block_table: Tensor
    slot: Tensor
    # Index tensors that attention derives from the fields above once per step rather than once per layer. They are why
    # every step needs an AttnMeta of its own.
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


def attn_meta(
    counts: Sequence[int],
    seq_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    *,
    write: Sequence[bool] | None = None,
    device: torch.device | str = "cpu",
) -> AttnMeta:
    """Build the metadata from host lists: per sequence its query count, its length after this step, its block ids.

    ``write[s] = False`` leaves the cache of sequence s as it is (slots -1).
    """
    cu_q, slot = [0], []
    for s, (n, length) in enumerate(zip(counts, seq_lens)):
        cu_q.append(cu_q[-1] + n)
        table = block_tables[s]
        if write is None or write[s]:
            slot += [table[p // block_size] * block_size + p % block_size for p in range(length - n, length)]
        else:
            slot += [-1] * n
    width = max((len(t) for t in block_tables), default=0)
    padded = [[*t, *[0] * (width - len(t))] for t in block_tables]
    return AttnMeta(
        cu_q=torch.tensor(cu_q, device=device),
        seq_len=torch.tensor(list(seq_lens), dtype=torch.int64, device=device),
        block_table=torch.tensor(padded, dtype=torch.int64, device=device).view(len(padded), width),
        slot=torch.tensor(slot, dtype=torch.int64, device=device),
    )


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot: Tensor) -> None:
    """Put k and v [T, Hk, D] into their slots [T]; rows with slot -1 fall into the null block."""
    where = slot.clamp(min=0)
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache.flatten(0, 1).index_copy_(0, where, new.to(cache.dtype))


def copy_blocks(caches: Sequence[tuple[Tensor, Tensor]], src: Tensor, dst: Tensor) -> None:
    """Copy whole blocks src [N] to dst [N] (int) in every layer's cache: copy-on-write after a fork.

    No destination may be another copy's source.
    """
    for pair in caches:
        for cache in pair:
            cache.index_copy_(0, dst, cache.index_select(0, src))
