"""Verification of drafts by shared noise, on the device: keep what agrees, and the target's own choice behind it.

What it means and why no text can change is ``quire.reference.sampling.verification``. Here the choices are there
already, one per position, made by ``sample`` with every position's own noise and history; what is left is to compare
them with the drafts, to put them in their place, and to move the row's length on. A sequence without drafts is the
same with nothing to compare: its one choice is appended.

Roofline: launch and latency.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap

MOST = 64  # positions of one sequence


def settle(
    chosen: Tensor,
    row: Tensor,
    length: Tensor,
    first: Tensor,
    tokens: Tensor,
    row_len: Tensor,
    *,
    most: int,
    limit: Tensor | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep the longest run of drafts that agree with the choices, and one choice more, in the rows of R sequences.

    chosen       int64 [P], the target's choices, for P positions
    row, length  int32 [P], the row that each position belongs to, and how many tokens come before it
    first        int32 [R + 1]; sequence r has the positions first[r] .. first[r + 1] - 1: behind its last known token,
                 and behind each of its drafts, which stand in its row
    tokens       int32 [num_rows, ...], the rows; the tokens gained are written there
    row_len      int32 [num_rows], becomes the number of tokens of each row
    most         a bound on the positions of one sequence
    limit        int32 [R] or None: only the first so many positions of a sequence count; it may gain no token behind
                 the drafts then
    into         where the results shall be, if not in new tensors

    -> (the choices int64 [P]; how many drafts were accepted of each sequence, int32 [R]). Both stay on the device.
    """
    count = len(first) - 1
    copy, accepted = into or (chosen, torch.empty(count, dtype=torch.int32, device=chosen.device))
    if count:
        _keep_agreeing[(count,)](
            chosen, row, length, first, tokens, row_len,
            first if limit is None else limit, int(limit is not None), copy, accepted, tokens.stride(0),
            BLOCK=1 if most == 1 else MOST, num_warps=1, **OVERLAP,
        )  # fmt: skip
    return copy, accepted


@triton.jit(do_not_specialize=["limited"])
def _keep_agreeing(
    chosen, rows, lengths, first, tokens, row_len, limits, limited, copy, accepted, stride, BLOCK: tl.constexpr
):  # fmt: skip
    """One program per sequence."""
    overlap()
    r = tl.program_id(0)
    begin = tl.load(first + r)
    n = tl.load(first + r + 1) - begin
    if n == 0:  # padding
        return
    row, length = tl.load(rows + begin).to(tl.int64), tl.load(lengths + begin)
    i = tl.arange(0, BLOCK)
    own = tl.load(chosen + begin + i, mask=i < n, other=0)
    to = tokens + row * stride + length + i
    draft = tl.load(to, mask=i < n - 1, other=-1)
    limit = tl.load(limits + r, mask=limited != 0, other=0)
    limit = tl.where(limited != 0, limit, n)
    agree = (own == draft.to(tl.int64)) & (i < n - 1) & (i < limit)
    count = tl.min(tl.where(agree, BLOCK, i), 0)
    gained = tl.minimum(count + 1, limit)
    tl.store(to, own.to(tl.int32), mask=i < gained)
    tl.store(accepted + r, count)
    tl.store(row_len + row, length + gained)
    tl.store(copy + begin + i, own, mask=i < n)
