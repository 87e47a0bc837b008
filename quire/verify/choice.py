"""Did the sampler choose the token that the reference sampler chooses? Up to near-ties, by the rule of docs/design.md.

The two samplers work on logits that agree to within rounding, so where two tokens' perturbed scores (divided by the
temperature, with noise) are closer than that, either may win; and a token whose score is that close to the threshold of
top-k, top-p or min-p may be in or out. A choice is right if it is among the tokens that are kept perhaps, and beats, or
nearly beats, every token that is kept if it is: those that are kept for certain, and those that score higher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control import philox
from quire.reference.sampling import SamplerState, sample
from quire.reference.sampling.processors import process
from quire.reference.sampling.truncation import thresholds

Ints = npt.NDArray[np.int64]
ROUNDING = 1e-4  # what a float32 sampler may be off: logarithms of the noise, the division by the temperature


def wrong_choices(
    logits: Tensor,
    chosen: Ints,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    masks: Mapping[int, Any],
) -> dict[int, tuple[float, float]]:
    """The positions where ``chosen`` [R] is not a right choice -> (how far its score is behind, what is allowed).

    logits [R, V] in the model's dtype; the other arguments are those of ``quire.reference.sampling.sample``.
    """
    scores = logits.float()
    best = sample(scores, state, rows, lengths, tokens, masks).cpu().numpy()
    wrong = {}
    for i in np.flatnonzero(best != chosen).tolist():
        one = slice(i, i + 1)
        mask = {0: masks[i]} if i in masks else {}
        own = process(scores[one], state, rows[one], lengths[one], tokens, mask)
        finite = own[own.isfinite()]
        if not 0 <= chosen[i] < own.shape[1] or not len(finite):
            wrong[i] = np.inf, 0.0
            continue
        # Two units in the last place of the largest score: matrix products of another shape round differently.
        tolerance = ROUNDING + 2 * torch.finfo(logits.dtype).eps * float(finite.abs().max())
        behind, allowed = _behind(own, int(chosen[i]), state, rows[one], lengths[one], tolerance)
        if not behind <= allowed:
            wrong[i] = behind, allowed
    return wrong


def _behind(
    scores: Tensor, token: int, state: SamplerState, row: Ints, length: Ints, tolerance: float
) -> tuple[float, float]:
    """How far ``token``'s perturbed score is below the best, and the tolerance in the same unit. scores [1, V]."""
    temperature = float(state.temperature[row[0]])
    if temperature == 0:
        return float(scores.max() - scores[0, token]), tolerance
    scaled, slack = scores / temperature, tolerance / temperature
    top_k, top_p, log_min_p = state.top_k[row], state.top_p[row], state.log_min_p[row]
    perhaps = thresholds(scaled, top_k, top_p + slack, log_min_p) - slack
    certain = thresholds(scaled, top_k, np.maximum(top_p - slack, 0.0), log_min_p) + slack
    if scaled[0, token] < perhaps[0]:
        return float("inf"), slack
    noise = philox.gumbel_rows(state.seed[row], state.stream[row], length, scores.shape[1])
    perturbed = scaled + torch.from_numpy(noise).to(scores.device)
    rivals = perturbed.masked_fill(scaled < torch.minimum(certain, scaled[:, token] + slack), -torch.inf)
    return float(rivals.max() - perturbed[0, token]), 2 * slack
