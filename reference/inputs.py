"""From rows and positions to what a forward pass takes: token ids, positions, and where they stand in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.ops.cache import AttnMeta

Ints = npt.NDArray[np.int64]


@dataclass
class Inputs:
    """Token ids and positions [T], and the metadata of attention."""

    ids: Tensor
    positions: Tensor
    meta: AttnMeta


def to_device(array: npt.NDArray[np.integer], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def ragged_inputs(
    rows: Ints,
    start: Ints,
    end: Ints,
    tokens: npt.NDArray[np.int32],
    block_table: Ints,
    block_size: int,
    device: torch.device,
    unwritten: Sequence[int] = (),
) -> tuple[Inputs, Ints]:
    """Inputs for the positions ``start`` to ``end`` - 1 of each of ``rows`` (all int64 [S]).

    tokens and block_table are the rows' state; the sequences ``unwritten`` (indices) leave the cache as it is.
    -> (inputs, where each sequence's tokens begin in them: int64 [S + 1])
    """
    n = end - start
    cu_q = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(n, out=cu_q[1:])
    if cu_q[-1] == len(rows):  # decodes only: every sequence has one token
        row, position = rows, start
    else:
        row = np.repeat(rows, n)
        position = np.arange(cu_q[-1]) + np.repeat(start - cu_q[:-1], n)
    block, offset = np.divmod(position, block_size)
    slot = block_table[row, block] * block_size + offset
    for i in unwritten:
        slot[cu_q[i] : cu_q[i + 1]] = -1
    longest = int(end.max())
    meta = AttnMeta(
        cu_q=to_device(cu_q, device),
        seq_len=to_device(end, device),
        block_table=to_device(block_table[rows, : -(-longest // block_size)], device),
        slot=to_device(slot, device),
    )
    ids = to_device(tokens[row, position].astype(np.int64), device)
    return Inputs(ids, to_device(position, device), meta), cu_q
