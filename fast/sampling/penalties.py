"""Repetition, frequency and presence penalties: in place, on the few logits whose tokens stand in a history.

The idea. A history has some hundred tokens where the vocabulary has 150,000, so nothing of the vocabulary's size is
kept, read or cleared: the logit's own cell serves as the counter. First every position of the history exchanges its
token's cell for the number 0, marked as such (a NaN that no computation makes). Who gets the raw logit back is the
token's *owner*; who gets the mark came later. Then every generated position adds one to its token's cell, and at last
the owner turns raw logit and count into the penalised logit. Which of equal tokens owns the cell is left to chance; the
result is not. The raw values are kept and put back afterwards, so no state has to follow forks and preemptions.

Roofline: the latency of three rounds of atomics. Measured on an H200, 256 rows with histories of 840 tokens: 32 µs,
putting the raw values back included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap
from quire.fast.sampling.state import DeviceSamplerState

TILE = 1024  # positions at a time
_MARK = tl.constexpr(0x7FE00000)  # as float32 a NaN; from here on, cells are counters


@dataclass
class Edits:
    """What was changed: ``raw`` int32 [R, columns] holds at each owner's position the bits of the logit, else _MARK."""

    raw: Tensor
    rows: Tensor
    lengths: Tensor
    tokens: Tensor

    def undo(self, logits: Tensor) -> None:
        """Put the raw logits back."""
        _undo[(len(self.rows),)](
            logits.view(torch.int32), self.raw, self.rows, self.lengths, self.tokens,
            logits.stride(0), self.raw.stride(0), self.tokens.stride(0), TILE, num_warps=8, **OVERLAP,
        )  # fmt: skip


def penalise(logits: Tensor, state: DeviceSamplerState, rows: Tensor, lengths: Tensor, tokens: Tensor) -> Edits | None:
    """Apply each row's penalties to its float32 ``logits`` [R, V], in place. Arguments as for ``sample``."""
    assert logits.dtype == torch.float32, "penalties need room for their results"
    if len(rows) == 0:
        return None
    raw = torch.empty(len(rows), tokens.shape[1], dtype=torch.int32, device=logits.device)
    _penalise[(len(rows),)](
        logits.view(torch.int32), raw, rows, lengths, tokens,
        state.prompt_len, state.repetition, state.frequency, state.presence,
        logits.stride(0), raw.stride(0), tokens.stride(0), TILE, num_warps=8, **OVERLAP,
    )  # fmt: skip
    return Edits(raw, rows, lengths, tokens)


@triton.jit
def _penalise(
    cells, raw, rows, lengths, tokens, prompt_len, repetition, frequency, presence,
    stride_cells, stride_raw, stride_tokens, TILE: tl.constexpr,
):  # fmt: skip
    """Program (position in the batch): its whole history, three times."""
    overlap()
    r = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + r).to(tl.int64)
    length, prompt = tl.load(lengths + r).to(tl.int32), tl.load(prompt_len + row)
    factor, per_use, once = tl.load(repetition + row), tl.load(frequency + row), tl.load(presence + row)
    something = (factor != 1.0) | (per_use != 0.0) | (once != 0.0)
    history, cells, raw = tokens + row * stride_tokens, cells + r * stride_cells, raw + r * stride_raw
    mark = tl.full([TILE], _MARK, tl.int32)
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        token = tl.load(history + at, mask=at < length, other=0)
        old = mark
        if something:
            old = tl.atomic_xchg(cells + token, mark, mask=at < length)
            old = tl.where(old >= _MARK, mark, old)
        tl.store(raw + at, old, mask=at < length)
    if something:
        tl.debug_barrier()
        for start in range(prompt // TILE * TILE, length, TILE):
            at = start + tl.arange(0, TILE)
            token = tl.load(history + at, mask=at < length, other=0)
            tl.atomic_add(cells + token, mark * 0 + 1, mask=(at >= prompt) & (at < length))
        tl.debug_barrier()
        for start in range(0, length, TILE):
            at = start + tl.arange(0, TILE)
            token = tl.load(history + at, mask=at < length, other=0)
            old = tl.load(raw + at, mask=at < length, other=_MARK)
            owner = old != _MARK
            uses = tl.load(cells + token, mask=owner, other=_MARK) - _MARK
            x = old.to(tl.float32, bitcast=True)
            x = tl.where(x > 0, x / factor, x * factor)
            x = tl.where(uses > 0, x - per_use * uses.to(tl.float32) - once, x)
            tl.store(cells + token, x.to(tl.int32, bitcast=True), mask=owner)


@triton.jit
def _undo(cells, raw, rows, lengths, tokens, stride_cells, stride_raw, stride_tokens, TILE: tl.constexpr):
    overlap()
    r = tl.program_id(0).to(tl.int64)
    history = tokens + tl.load(rows + r).to(tl.int64) * stride_tokens
    length = tl.load(lengths + r).to(tl.int32)
    for start in range(0, length, TILE):
        at = start + tl.arange(0, TILE)
        token = tl.load(history + at, mask=at < length, other=0)
        x = tl.load(raw + r * stride_raw + at, mask=at < length, other=_MARK)
        tl.store(cells + r * stride_cells + token, x, mask=x != _MARK)
