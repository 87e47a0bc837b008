"""Choosing the token: argmax(logits / T + Gumbel noise) over the kept tokens, or plain argmax where T = 0.

Adding standard Gumbel noise to scores and taking the largest draws from softmax(scores) exactly (Gumbel 1954; Maddison,
Tarlow and Minka, "A* Sampling", 2014). The noise is a function of (seed, stream, position, token), see
``quire.reference.control.philox``: no state, no order of draws, and noise is needed for the kept tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control import philox
from quire.reference.sampling.processors import Ints, Mask, process
from quire.reference.sampling.state import SamplerState
from quire.reference.sampling.truncation import thresholds

# A token this far below the best score loses even with the best noise against the worst (and 1 for rounding).
REACH = philox.GUMBEL_MAX - philox.GUMBEL_MIN + 1
# Scores worked on at once on a CPU: their temporaries stay in its caches. (64 rows of 150,000: 3 times faster.)
CPU_CHUNK = 1 << 18


def sample(
    logits: Tensor,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    masks: Mapping[int, Mask] | None = None,
) -> Tensor:
    """Choose one token per position.

    logits   float32 [R, V], raw; not changed
    state    parameters of all rows
    rows     int64 [R], the row in ``state`` and ``tokens`` that each position belongs to
    lengths  int64 [R], tokens known before this position; the chosen token becomes number ``lengths[i]``
    tokens   int [num_rows, ...], the rows' histories; read up to ``lengths`` only
    masks    index in the batch -> bool [V], True = allowed (a grammar's)

    -> int64 [R] on the logits' device. Equal scores: the lowest token id. Should the model itself give -inf to every
    token, token 0. One position's result does not depend on the others in the batch.
    """
    scores = process(logits, state, rows, lengths, tokens, masks)
    random = np.flatnonzero(state.temperature[rows])
    if len(random) == 0:
        return scores.argmax(-1)
    chunk = len(rows) if scores.device.type != "cpu" else max(1, CPU_CHUNK // scores.shape[1])
    if len(random) == len(rows) <= chunk:
        return _draw(scores, state, rows, lengths)
    chosen = torch.empty(len(rows), dtype=torch.int64, device=scores.device)
    greedy = np.flatnonzero(state.temperature[rows] == 0)
    if len(greedy):
        at = torch.from_numpy(greedy).to(scores.device)
        chosen[at] = scores[at].argmax(-1)
    for part in (random[i : i + chunk] for i in range(0, len(random), chunk)):
        at = torch.from_numpy(part).to(scores.device)
        chosen[at] = _draw(scores[at], state, rows[part], lengths[part])
    return chosen


def _draw(logits: Tensor, state: SamplerState, rows: Ints, lengths: Ints) -> Tensor:
    """Temperature, truncation and noise for rows that are not greedy. logits [R, V] -> int64 [R]."""
    device = logits.device
    scores = logits / torch.from_numpy(state.temperature[rows])[:, None].to(device)
    lowest = thresholds(scores, state.top_k[rows], state.top_p[rows], state.log_min_p[rows])
    lowest = torch.maximum(lowest, scores.amax(-1) - REACH)
    kept = scores >= lowest[:, None]
    seed, stream = state.seed[rows], state.stream[rows]
    if 4 * int(kept.sum()) > kept.numel():  # one call of the generator serves four neighbours: cheaper to draw rows
        noise = torch.from_numpy(philox.gumbel_rows(seed, stream, lengths, scores.shape[1])).to(device)
        return torch.where(kept, scores + noise, -torch.inf).argmax(-1)
    flat = np.flatnonzero(kept.cpu().numpy())
    r, token = np.divmod(flat, scores.shape[1])
    noise = torch.from_numpy(philox.gumbel(seed[r], stream[r], lengths[r], token)).to(device)
    at = torch.from_numpy(flat).to(device)
    perturbed = torch.full_like(scores, -torch.inf)
    perturbed.view(-1)[at] = scores.view(-1)[at] + noise
    return perturbed.argmax(-1)
