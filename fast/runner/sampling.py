"""From hidden states to tokens: the logits, the choice, and the chosen token's place in its row.

What nearly all requests want (temperature, truncation, penalties) is device work that depends on nothing but which of
the three somebody in the batch uses, so it can be a graph. What few want (rules, grammars, log-probabilities) runs
eagerly on top, and still without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap
from quire.fast.runner.rows import Rows
from quire.fast.sampling import sample
from quire.reference.sampling import SamplerState

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wants:
    """What somebody in the batch uses; nobody means kernels saved."""

    penalised: bool
    truncated: bool

    @classmethod
    def of(cls, sampler: SamplerState, rows: Ints) -> Wants:
        cut = (sampler.top_k[rows] < sampler.vocab_size) | (sampler.top_p[rows] < 1)
        cut |= sampler.log_min_p[rows] > -np.inf
        return cls(bool(sampler.penalised[rows].any()), bool((cut & (sampler.temperature[rows] > 0)).any()))


def choose(scores: Tensor, rows: Rows, row: Tensor, length: Tensor, wants: Wants, into: Tensor | None = None) -> Tensor:
    """Choose a token for each of R positions and append it to its row: -> int64 [R], which is ``into`` if it is given.

    scores [R, V]; row, length int32 [R] on the device: the chosen token becomes number ``length`` of ``row``.
    """
    chosen = sample(scores, rows.params, row, length, rows.tokens, penalised=wants.penalised, truncated=wants.truncated)
    _append[(triton.cdiv(len(row), 128),)](
        rows.tokens, rows.tokens.stride(0), row, length, chosen, chosen if into is None else into, len(row),
        BLOCK=128, num_warps=4, **OVERLAP,
    )  # fmt: skip
    return chosen if into is None else into


@triton.jit(do_not_specialize=["count"])
def _append(tokens, stride, rows, lengths, chosen, into, count, BLOCK: tl.constexpr):
    overlap()
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + i, mask=i < count, other=0).to(tl.int64)
    length = tl.load(lengths + i, mask=i < count, other=0)
    token = tl.load(chosen + i, mask=i < count, other=0)
    tl.store(tokens + row * stride + length, token.to(tl.int32), mask=i < count)
    tl.store(into + i, token, mask=i < count)
