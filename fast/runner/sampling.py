"""From hidden states to tokens: the logits, the choices, and the chosen tokens' place in their rows.

What nearly all requests want (temperature, truncation, penalties) is device work that depends on nothing but which of
the three somebody in the batch uses, so it can be a graph. What few want (rules, grammars, log-probabilities) runs
eagerly on top, and still without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.fast.runner.rows import Rows
from quire.fast.sampling import distribution, reject, sample, settle
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


@dataclass
class Places:
    """The positions that a step samples, on the device: P of them, for R sequences.

    row, length   int32 [P]: the row of each, and how many tokens come before it
    first         int32 [R + 1]: sequence r has the positions first[r] .. first[r + 1] - 1, one more than drafts
    most          a bound on the positions of one sequence
    """

    row: Tensor
    length: Tensor
    first: Tensor
    most: int

    def cut(self, sequences: int, positions: int) -> Places:
        """Without the padding behind so many."""
        return Places(self.row[:positions], self.length[:positions], self.first[: sequences + 1], self.most)


def choose(
    scores: Tensor,
    rows: Rows,
    at: Places,
    wants: Wants,
    limit: Tensor | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose a token for each position, by ``scores`` [P, V], and append to each row what it gains by that.

    -> (the chosen tokens, int64 [P]; how many drafts were accepted, int32 [R]). ``limit`` and ``into``: see ``settle``.
    """
    chosen = sample(
        scores, rows.params, at.row, at.length, rows.tokens, penalised=wants.penalised, truncated=wants.truncated
    )
    return settle(chosen, at.row, at.length, at.first, rows.tokens, rows.row_len, most=at.most, limit=limit, into=into)


def choose_by_rejection(
    scores: Tensor,
    rows: Rows,
    at: Places,
    wants: Wants,
    n_draft: Ints,
    probs: list[Tensor | None],
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same by rejection sampling, for sequences with ``n_draft`` [R] drafts each.

    probs   of each sequence, what its drafts were drawn from: float32 [n_draft or more, V]; None: they are certain
    """
    p = distribution(
        scores, rows.params, at.row, at.length, rows.tokens, penalised=wants.penalised, truncated=wants.truncated
    )
    q = torch.zeros_like(p)
    begin = 0
    for n, own in zip(n_draft.tolist(), probs):
        if own is not None:
            q[begin : begin + n] = own[:n]
        elif n:
            drafts = rows.tokens[at.row[begin].long(), at.length[begin : begin + n].long()]
            q[begin : begin + n].scatter_(1, drafts.long()[:, None], 1.0)
        begin += n + 1
    return reject(p, q, rows.params, at.row, at.length, at.first, rows.tokens, rows.row_len, limit)
