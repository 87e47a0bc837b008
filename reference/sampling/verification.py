"""Verification of drafts by shared noise: the target chooses at every drafted position, and keeps what agrees.

At each position the target's token is the one that it would choose without speculation: from its own logits, with that
position's own noise, after the history that stands so far. As long as a draft is this very token, the history behind it
is right too, and the next position's choice counts. The first one that differs takes the draft's place, and what was
drafted behind it is forgotten. So no text can change, whatever was proposed; a draft that is drawn with the same noise
merely agrees more often (the coupling of two Gumbel-max draws: Daliri, Musco and Suresh 2024, 2408.07978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quire.reference.sampling.processors import Ints
from quire.reference.sampling.sampler import sample
from quire.reference.sampling.state import SamplerState


@dataclass(frozen=True)
class Positions:
    """The positions of R sequences with ``n_draft`` [R] drafts each, one after the other: T = R + sum(n_draft).

    row     int64 [T]
    length  int64 [T], tokens before each position
    first   int64 [R], where each sequence's positions begin
    """

    row: Ints
    length: Ints
    first: Ints

    @classmethod
    def of(cls, rows: Ints, lengths: Ints, n_draft: Ints) -> Positions:
        """lengths [R]: tokens before each sequence's first position, its drafts not counted."""
        counts = n_draft + 1
        first = np.cumsum(counts) - counts
        offset = np.arange(counts.sum()) - np.repeat(first, counts)
        return cls(np.repeat(rows, counts), np.repeat(lengths, counts) + offset, first)


def verify(
    logits: Tensor,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    n_draft: Ints,
    masks: Mapping[int, Any] | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Choose tokens for sequences with drafts.

    logits   float32 [T, V], raw, at the last token and the drafts of each sequence: R + sum(n_draft) positions
    rows     int64 [R]; lengths int64 [R], tokens known, drafts not counted
    tokens   int [num_rows, ...]; the drafts of row r stand behind its known tokens
    n_draft  int64 [R]
    masks    index of the sequence -> bool [V] for its next position, or [m, V] for its next m <= n_draft + 1 ones.
             Where there is no mask the sequence stops gaining tokens.

    -> (tokens gained: accepted drafts, then the target's own; how many drafts were accepted), for each sequence.
    """
    at = Positions.of(rows, lengths, n_draft)
    by_position, limits = spread_masks(masks or {}, at.first, n_draft)
    chosen = sample(logits, state, at.row, at.length, tokens, by_position).cpu().numpy()
    gained, accepted = [], []
    for i, (first, limit) in enumerate(zip(at.first.tolist(), limits)):
        own = chosen[first : first + limit]
        drafts = tokens[rows[i], lengths[i] : lengths[i] + n_draft[i]]
        count = min(limit, len(drafts))
        agree = agreement(own[:count], drafts[:count])
        gained.append(own[: agree + 1].tolist())
        accepted.append(agree)
    return gained, accepted


def agreement(one: npt.NDArray[np.integer], other: npt.NDArray[np.integer]) -> int:
    """How many leading entries of two arrays of equal length are equal."""
    different = np.flatnonzero(one != other)
    return int(different[0]) if len(different) else len(one)


def spread_masks(masks: Mapping[int, Any], first: Ints, n_draft: Ints) -> tuple[dict[int, Any], Sequence[int]]:
    """Masks by position instead of by sequence, and how many positions of each sequence count."""
    by_position: dict[int, Any] = {}
    limits: list[int] = (n_draft + 1).tolist()
    for i, mask in masks.items():
        rows = mask[None] if mask.ndim == 1 else mask
        limits[i] = min(limits[i], len(rows))
        by_position |= {int(first[i]) + j: rows[j] for j in range(limits[i])}
    return by_position, limits
