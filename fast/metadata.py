"""``AttnMeta``: where a step's tokens stand in the paged KV cache, for the ops of this plane on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class AttnMeta:
    """One step's ragged batch of S sequences and T tokens; the fields and their meaning are the reference's.

    cu_q         [S + 1] int; sequence s has the query rows cu_q[s] .. cu_q[s + 1] - 1, its last positions
    seq_len      [S] int; tokens of K/V after this step's tokens have been written
    block_table  [S, M] int; entries beyond ceil(seq_len / block_size) are never read
    slot         [T] int; where each token's K/V goes; -1 = do not write (a sequence's tokens are all -1 or none is)
    max_q        the most query rows that a sequence has, or a bound on it. Kernels are launched from the host, which
                 does not know what is in the tensors above; None: nothing is known.
    padded       whether there may be rows after the last sequence's; if not, none need to be cleared
    """

    cu_q: Tensor
    seq_len: Tensor
    block_table: Tensor
    slot: Tensor
    # What attention derives from the fields above once per step rather than once per layer: every step needs an
    # AttnMeta of its own (a captured graph has one, and derives anew at each replay).
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    max_q: int | None = None
    padded: bool = True


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
        if write is None or write[s]:
            table = block_tables[s]
            slot += [table[p // block_size] * block_size + p % block_size for p in range(length - n, length)]
        else:
            slot += [-1] * n
    width = max((len(t) for t in block_tables), default=0)
    padded = [[*t, *[0] * (width - len(t))] for t in block_tables]
    return AttnMeta(
        cu_q=torch.tensor(cu_q, dtype=torch.int32, device=device),
        seq_len=torch.tensor(list(seq_lens), dtype=torch.int32, device=device),
        block_table=torch.tensor(padded, dtype=torch.int32, device=device).view(len(padded), width),
        slot=torch.tensor(slot, dtype=torch.int64, device=device),
        max_q=max(counts, default=0),
        padded=False,
    )
