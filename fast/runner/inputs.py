"""The inputs of a step, built on the device: token ids, positions, slots, lengths and block tables.

The host says five numbers per sequence: its row, where it starts (or that only the row knows, since drafts are in
flight), how many tokens, whether it writes, and the block it gained, if any. Everything else follows from the rows,
which are on the device: above all the token that the step before has sampled, or a draft model has drafted, and that
the host may not even know yet. Only drafts that the host has looked up come from there, and are put into the rows on
the way. One program makes one sequence's inputs (a tile of them, if there are many).

Roofline: launch and latency, 3 µs for 256 decodes.
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
AHEAD = 2


@dataclass
class Inputs:
    """What the model's forward pass takes; and for sampling behind any of its tokens, int32 [T]: ``row``, the row that
    the token belongs to, and ``length``, the tokens up to it."""

    ids: Tensor
    positions: Tensor
    meta: AttnMeta
    row: Tensor
    length: Tensor


def build_inputs(
    rows: Rows,
    row: Tensor,
    start: Tensor,
    writes: Tensor,
    new_block: Tensor,
    cu_q: Tensor,
    tokens: int,
    max_q: int,
    *,
    padded: bool = False,
    given: Tensor | None = None,
) -> Inputs:
    """Inputs of a step of S sequences and T tokens.

    row, start, writes, new_block   int32 [S]: the sequence's row, its first position, whether its K/V is written, and a
                                    block that follows those of the positions before ``start`` (0: none).
                                    ``writes`` + AHEAD: ``start`` is a bound, and the first position the row's last
    cu_q                            int32 [S + 1]: sequence s has the tokens cu_q[s] .. cu_q[s + 1] - 1
    tokens, max_q                   T, and a bound on the tokens of one sequence
    padded                          whether T may be more than cu_q[S]: padding stands between
    given                           int32 [T] or None: tokens to be written into the rows first, -1 where they have them
    """
    sequences, device, width = len(row), row.device, rows.block_table.shape[1]
    # Kernels are compiled for addresses that are multiples of 16 bytes, and once more for others.
    ids, positions, slot = torch.empty(3, -(-tokens // 2) * 2, dtype=torch.int64, device=device)[:, :tokens]
    row_of, length = torch.empty(2, -(-tokens // 4) * 4, dtype=torch.int32, device=device)[:, :tokens]
    seq_len = torch.empty(sequences, dtype=torch.int32, device=device)
    table = torch.empty(sequences, width, dtype=torch.int32, device=device)
    tile = 1 if max_q == 1 else TILE
    _build_inputs[(sequences + padded, triton.cdiv(max_q, tile))](
        row, start, writes, new_block, cu_q, cu_q if given is None else given, rows.tokens, rows.row_len,
        rows.block_table, ids, positions, slot, row_of, length, seq_len, table, rows.tokens.stride(0), width, sequences,
        tokens, rows.padding,
        GIVEN=given is not None, BLOCK_SIZE=rows.block_size, TILE=tile, ENTRIES=ENTRIES, num_warps=2, **OVERLAP,
    )  # fmt: skip
    meta = AttnMeta(cu_q, seq_len, table, slot, max_q=max_q, padded=padded)
    return Inputs(ids, positions, meta, row_of, length)


@triton.jit(do_not_specialize=["sequences", "tokens", "padding"])
def _build_inputs(
    rows, starts, writes, new_blocks, cu_q, given, tokens_of, row_len, tables, ids, positions, slots, row_of, lengths,
    seq_len, table, stride_tokens, width, sequences, tokens, padding,
    GIVEN: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Program (sequence, tile of its tokens); there may be one sequence more than there are, which is padding."""
    overlap()
    s, tile = tl.program_id(0), tl.program_id(1)
    query0 = tl.load(cu_q + s)
    if s == sequences:
        for first in range(query0 + tile * TILE, tokens, tl.num_programs(1) * TILE):
            t = first + tl.arange(0, TILE)
            zero = tl.zeros([TILE], tl.int64)
            tl.store(ids + t, zero, mask=t < tokens)
            tl.store(positions + t, zero, mask=t < tokens)
            tl.store(slots + t, zero - 1, mask=t < tokens)
            tl.store(row_of + t, (zero + padding).to(tl.int32), mask=t < tokens)
            tl.store(lengths + t, (zero + 1).to(tl.int32), mask=t < tokens)
        return
    row, bound, how = tl.load(rows + s).to(tl.int64), tl.load(starts + s), tl.load(writes + s)
    start = tl.where(how >= 2, tl.load(row_len + row) - 1, bound)
    n = tl.load(cu_q + s + 1) - query0
    new, entry = tl.load(new_blocks + s), tl.cdiv(bound, BLOCK_SIZE)
    own = tables + row * width
    i = tile * TILE + tl.arange(0, TILE)
    p = start + i
    block = tl.load(own + p // BLOCK_SIZE, mask=i < n, other=0)
    block = tl.where((new > 0) & (p // BLOCK_SIZE == entry), new, block)
    slot = tl.where(how % 2 != 0, block.to(tl.int64) * BLOCK_SIZE + p % BLOCK_SIZE, -1)
    token = tl.load(tokens_of + row * stride_tokens + p, mask=i < n, other=0)
    if GIVEN:
        draft = tl.load(given + query0 + i, mask=i < n, other=-1)
        tl.store(tokens_of + row * stride_tokens + p, draft, mask=draft >= 0)
        token = tl.where(draft >= 0, draft, token)
    tl.store(ids + query0 + i, token.to(tl.int64), mask=i < n)
    tl.store(positions + query0 + i, p.to(tl.int64), mask=i < n)
    tl.store(slots + query0 + i, slot, mask=i < n)
    tl.store(row_of + query0 + i, tl.zeros([TILE], tl.int32) + row.to(tl.int32), mask=i < n)
    tl.store(lengths + query0 + i, p + 1, mask=i < n)
    if tile == 0:
        tl.store(seq_len + s, start + n)
        for first in range(0, tl.cdiv(tl.maximum(start + n, 1), BLOCK_SIZE), ENTRIES):
            e = first + tl.arange(0, ENTRIES)
            x = tl.load(own + e, mask=e < width, other=0)
            tl.store(table + s.to(tl.int64) * width + e, tl.where((new > 0) & (e == entry), new, x), mask=e < width)
        if new > 0:
            tl.store(own + entry, new)
