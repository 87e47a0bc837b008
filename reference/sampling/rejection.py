"""Verification of drafts by rejection sampling (Leviathan et al. 2022, 2211.17192; Chen et al. 2023, 2302.01318).

A draft x drawn from q is accepted with probability min(1, p(x) / q(x)), where p is the target's distribution there. The
first one that is not is replaced by a draw from max(p - q, 0), normalised; if all are accepted, one more token is drawn
from p. What comes out is distributed as p, for any q: what q has too much of is thrown away, what it lacks is added.
A lookup's draft is certain: q is one at x, so p(x) decides, and the replacement is drawn from p without x.

The text is then another one than without speculation, with the same law. Its random numbers are still a function of
(seed, stream, position): the draft's noise, the accepting uniform and the replacement's noise are three purposes of the
generator. Each position is decided once, by numbers that nothing before it has used, so a rejected draft may be drawn
with the same noise again at its position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control import philox
from quire.reference.sampling.processors import Ints, process
from quire.reference.sampling.state import SamplerState
from quire.reference.sampling.truncation import thresholds
from quire.reference.sampling.verification import Positions, spread_masks


def distribution(
    logits: Tensor,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    masks: Mapping[int, Any] | None = None,
) -> Tensor:
    """What ``sample`` draws from, as probabilities float32 [R, V]; one-hot for greedy rows. Arguments as for it."""
    scores = process(logits, state, rows, lengths, tokens, masks)
    greedy = torch.from_numpy(state.temperature[rows] == 0).to(scores.device)
    temperature = torch.from_numpy(np.where(state.temperature[rows] == 0, 1, state.temperature[rows])).to(scores.device)
    scaled = scores / temperature[:, None]
    lowest = thresholds(scaled, state.top_k[rows], state.top_p[rows], state.log_min_p[rows])
    probs = scaled.masked_fill(scaled < lowest[:, None], -torch.inf).softmax(-1)
    best = torch.zeros_like(probs).scatter_(1, scores.argmax(-1, keepdim=True), 1)
    return torch.where(greedy[:, None], best, probs)


def draw(weights: Tensor, state: SamplerState, rows: Ints, lengths: Ints, purpose: int) -> Tensor:
    """One token per row, its chance in proportion to ``weights`` [R, V], by the noise of ``purpose``: int64 [R]."""
    noise = philox.gumbel_rows(state.seed[rows], state.stream[rows], lengths, weights.shape[1], purpose)
    return (weights.log() + torch.from_numpy(noise).to(weights.device)).argmax(-1)


def accepts(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Whether drafts are accepted: with probability min(1, p / q). All [N]; u uniform in (0, 1)."""
    return u * q < p


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What the replacement of a rejected draft is drawn from, not normalised. p and q [N, V]."""
    lacking = (p - q).clamp(min=0)
    # Of equal distributions nothing is ever rejected, but for rounding.
    return torch.where(lacking.sum(-1, keepdim=True) > 0, lacking, p)


def reject(
    logits: Tensor,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    n_draft: Ints,
    draft_probs: Sequence[Tensor | None],
    masks: Mapping[int, Any] | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Choose tokens for sequences with drafts. Arguments and result as of ``verify``.

    draft_probs  of each sequence, what its drafts were drawn from: float32 [n_draft or more, V]; None = certain
    """
    at = Positions.of(rows, lengths, n_draft)
    by_position, limits = spread_masks(masks or {}, at.first, n_draft)
    p = distribution(logits, state, at.row, at.length, tokens, by_position)
    drafted = np.ones(len(at.row), bool)
    drafted[at.first + n_draft] = False
    token = np.where(drafted, tokens[at.row, np.minimum(at.length, tokens.shape[1] - 1)], 0).astype(np.int64)
    x = torch.from_numpy(token).to(p.device)[:, None]
    q = torch.zeros_like(p)
    q.scatter_(1, x, torch.from_numpy(drafted).to(p)[:, None])
    for first, n, probs in zip(at.first.tolist(), n_draft.tolist(), draft_probs):
        if probs is not None and n:
            q[first : first + n] = probs[:n]

    u = philox.uniform(state.seed[at.row], state.stream[at.row], at.length, philox.ACCEPT)
    accepted = accepts(p.gather(1, x)[:, 0], q.gather(1, x)[:, 0], torch.from_numpy(u).to(p.device)).cpu().numpy()
    # A sequence ends at its first position where nothing is accepted: a rejected draft, or the one behind all drafts.
    ends = np.where(drafted & accepted, len(accepted), np.arange(len(accepted)))
    last = np.minimum.reduceat(ends, at.first)
    counts = np.minimum(last - at.first, limits)
    which = torch.from_numpy(last).to(p.device)
    own = draw(residual(p[which], q[which]), state, rows, at.length[last], philox.SAMPLE).cpu().numpy()

    gained = []
    for first, count, limit, replacement in zip(at.first.tolist(), counts.tolist(), limits, own.tolist()):
        text = token[first : first + count].tolist()
        gained.append(text if count == limit else [*text, replacement])
    return gained, counts.tolist()
