"""Prompt lookup on the device: what it offers is what ``quire.reference.speculation.ngram`` does, without the host.

So a sequence's next step can be planned and launched while its drafts are still in flight: it verifies as many as were
asked for, from wherever the row ends by then. If nothing was found it verifies the row's first tokens, which costs as
much as a wrong draft; the host hears of it and asks for fewer.

A place in the text is a match of n tokens if these stand before it as they stand at the end. ``_find`` rates the places
of one piece of one row by n, and among equals by how late they are; ``_offer`` copies what stands behind the best.

Roofline: launch and latency.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import triton
import triton.language as tl

from quire.fast.runner.results import Fetched, Fetcher
from quire.fast.runner.rows import Rows
from quire.fast.runner.upload import Upload
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.speculation.ngram import NGram

PIECE = 8192  # places that one program rates, so many at once:
BLOCK = 1024


class Lookup:
    """Offers what ``ngram`` would, at most ``most`` drafts a row."""

    def __init__(self, ngram: NGram, rows: Rows, upload: Upload, fetcher: Fetcher, most: int) -> None:
        self.ngram, self.rows, self.most = ngram, rows, most
        self._upload, self._fetcher = upload, fetcher

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """It has no K/V."""

    def follow(self, plan: StepPlan) -> list[list[int]]:
        """It remembers nothing, and its drafts are in the rows."""
        return []

    @torch.inference_mode()
    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        asked = [i for i, s in enumerate(plan.seqs) if s.propose]
        if asked:
            seqs = [plan.seqs[i] for i in asked]
            longest = max(s.start + s.n for s in seqs) + 1
            rows, want = self._upload.send(list(np.array([(s.row, s.propose) for s in seqs], np.int64).T))
            tokens, row_len, count = self.rows.tokens, self.rows.row_len, triton.cdiv(longest, PIECE)
            best = torch.empty(len(seqs), count, dtype=torch.int64, device=tokens.device)
            found = torch.empty(len(seqs), 1 + self.most, dtype=torch.int32, device=tokens.device)
            _find[(len(seqs), count)](
                rows, tokens, row_len, best, tokens.stride(0),
                LEAST=self.ngram.least, MOST=self.ngram.most, PIECE=PIECE, BLOCK=BLOCK,
            )  # fmt: skip
            _offer[(len(seqs),)](
                rows, want, tokens, row_len, best, found, tokens.stride(0), count, self.most,
                BLOCK=triton.next_power_of_2(self.most), num_warps=1,
            )  # fmt: skip
            return partial(_found, asked, self._fetcher.fetch([found]))
        return partial(_found, [], None)


def _found(asked: list[int], fetched: Fetched | None, result: StepResult) -> None:
    """Say in the result how many drafts there are, and which."""
    for i, (count, *drafts) in zip(asked, fetched.wait()[0].tolist() if fetched else []):
        if count:
            result.drafts[i] = drafts[:count]


@triton.jit
def _find(
    rows, tokens, row_len, best, stride,
    LEAST: tl.constexpr, MOST: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, piece): the best place p there, as (tokens that match) << 32 | p; 0 if there is none."""
    r, piece = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + r).to(tl.int64)
    own, length = tokens + row * stride, tl.load(row_len + row)
    top = tl.zeros([], tl.int64)
    for first in range(piece * PIECE, tl.minimum(length, (piece + 1) * PIECE), BLOCK):
        p = first + tl.arange(0, BLOCK)
        alike, matches = (p > 0) & (p < length), tl.zeros([BLOCK], tl.int64)
        for n in range(1, MOST + 1):
            alike = alike & (p >= n)
            here = tl.load(own + p - n, mask=alike, other=-1)
            alike = alike & (here == tl.load(own + length - n, mask=n <= length, other=-2))
            matches += alike.to(tl.int64)
        top = tl.maximum(top, tl.max(tl.where(matches >= LEAST, (matches << 32) | p, 0), 0))
    tl.store(best + r * tl.num_programs(1) + piece, top)


@triton.jit(do_not_specialize=["pieces"])
def _offer(rows, want, tokens, row_len, best, found, stride, pieces, most, BLOCK: tl.constexpr):
    """One program per row: its drafts, behind its end and in ``found``, there with their number in front."""
    r = tl.program_id(0)
    row = tl.load(rows + r).to(tl.int64)
    own, length, n = tokens + row * stride, tl.load(row_len + row), tl.load(want + r)
    top = tl.zeros([], tl.int64)
    for piece in range(pieces):
        top = tl.maximum(top, tl.load(best + r * pieces + piece))
    place = (top & 0xFFFFFFFF).to(tl.int32)
    # Where the match reaches up to the end the text goes in circles, and so do the drafts.
    i = tl.arange(0, BLOCK)
    draft = tl.load(own + place + i % (length - place), mask=i < n, other=0)
    tl.store(own + length + i, draft, mask=(i < n) & (length + i < stride))
    out = found + r * (most + 1)
    tl.store(out, tl.where(top > 0, n, 0))
    tl.store(out + 1 + i, draft, mask=i < most)
