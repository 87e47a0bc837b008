"""The inputs of a step, built on the device: token ids, positions, slots, lengths and block tables.

The host says five numbers per sequence: its row, where it starts, how many tokens, whether it writes, and the block it
gained, if any. Everything else follows from the rows, which are on the device: above all the token that the step before
has sampled and that the host may not even know yet. One program makes one sequence's inputs (a tile of them, if there
are many).

Roofline: launch and latency; measured on an H200, 2.5 µs for 256 decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap
from quire.fast.ops import AttnMeta
from quire.fast.runner.rows import Rows

TILE = 128  # tokens per program
ENTRIES = 256  # of a block table, copied at once


@dataclass
class Inputs:
    """What the model's forward pass takes, and what sampling needs."""

    ids: Tensor
    positions: Tensor
    meta: AttnMeta


def build_inputs(
    rows: Rows, row: Tensor, start: Tensor, writes: Tensor, new_block: Tensor, cu_q: Tensor, tokens: int, max_q: int
) -> Inputs:
    """Inputs of a step of S sequences and T tokens.

    row, start, writes, new_block   int32 [S]: the sequence's row, its first position, whether its K/V is written, and a
                                    block to be appended to its table before (0: none; only where it has one token)
    cu_q                            int32 [S + 1]: sequence s has the tokens cu_q[s] .. cu_q[s + 1] - 1
    tokens, max_q                   T, and a bound on the tokens of one sequence
    """
    sequences, device, width = len(row), row.device, rows.block_table.shape[1]
    # Kernels are compiled for addresses that are multiples of 16 bytes, and once more for others.
    ids, positions, slot = torch.empty(3, -(-tokens // 2) * 2, dtype=torch.int64, device=device)[:, :tokens]
    seq_len = torch.empty(sequences, dtype=torch.int32, device=device)
    table = torch.empty(sequences, width, dtype=torch.int32, device=device)
    _build_inputs[(sequences, triton.cdiv(max_q, TILE))](
        row, start, writes, new_block, cu_q, rows.tokens, rows.block_table, ids, positions, slot, seq_len, table,
        rows.tokens.stride(0), width, BLOCK_SIZE=rows.block_size, TILE=1 if max_q == 1 else TILE, ENTRIES=ENTRIES,
        num_warps=2, **OVERLAP,
    )  # fmt: skip
    return Inputs(ids, positions, AttnMeta(cu_q, seq_len, table, slot, max_q=max_q, padded=False))


@triton.jit
def _build_inputs(
    rows, starts, writes, new_blocks, cu_q, tokens, tables, ids, positions, slots, seq_len, table,
    stride_tokens, width, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Program (sequence, tile of its tokens)."""
    overlap()
    s, tile = tl.program_id(0), tl.program_id(1)
    row, start = tl.load(rows + s).to(tl.int64), tl.load(starts + s)
    query0 = tl.load(cu_q + s)
    n = tl.load(cu_q + s + 1) - query0
    new, entry = tl.load(new_blocks + s), start // BLOCK_SIZE
    own = tables + row * width
    i = tile * TILE + tl.arange(0, TILE)
    p = start + i
    block = tl.load(own + p // BLOCK_SIZE, mask=i < n, other=0)
    block = tl.where(new > 0, new, block)
    slot = tl.where(tl.load(writes + s) != 0, block.to(tl.int64) * BLOCK_SIZE + p % BLOCK_SIZE, -1)
    tl.store(ids + query0 + i, tl.load(tokens + row * stride_tokens + p, mask=i < n, other=0).to(tl.int64), mask=i < n)
    tl.store(positions + query0 + i, p.to(tl.int64), mask=i < n)
    tl.store(slots + query0 + i, slot, mask=i < n)
    if tile == 0:
        tl.store(seq_len + s, start + n)
        for first in range(0, tl.cdiv(start + n, BLOCK_SIZE), ENTRIES):
            e = first + tl.arange(0, ENTRIES)
            x = tl.load(own + e, mask=e < width, other=0)
            tl.store(table + s.to(tl.int64) * width + e, tl.where((new > 0) & (e == entry), new, x), mask=e < width)
        if new > 0:
            tl.store(own + entry, new)
