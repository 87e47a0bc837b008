"""Whether two data planes agree: the same tokens, up to where two scores are so close that rounding decides.

After the first difference the two texts have different prefixes and there is nothing left to compare. So only that
position is looked at, with the reference model's logits in float32: the two tokens must be a near-tie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from quire import SamplingParams
from quire.reference.control import philox
from quire.reference.sampling import SamplerState
from quire.reference.sampling.processors import process
from quire.reference.sampling.truncation import thresholds
from tests.reference.models.driver import Paged


def agreement(
    model: Any,
    params: SamplingParams,
    prompt: Sequence[int],
    stream: int,
    one: Sequence[int],
    other: Sequence[int],
    tolerance: float,
) -> int:
    """How many positions are the same; AssertionError if the first difference is no near-tie.

    model  the reference's, on the CPU in float32;  stream  which of the request's completions
    """
    same = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    if same < max(len(one), len(other)):
        assert same < min(len(one), len(other)), f"one ends where the other goes on: {one} {other}"
        a, b = one[same], other[same]
        gap = gap_between(model, params, [*prompt, *one[:same]], len(prompt), stream, a, b)
        assert gap < tolerance, f"token {same} is {a} or {b}, and they are {gap} apart: {one} {other}"
    return same


def gap_between(
    model: Any, params: SamplingParams, tokens: list[int], prompt_len: int, stream: int, a: int, b: int
) -> float:
    """The distance of two tokens' perturbed scores after ``tokens``, or of one from the edge of the kept set.

    Masks are left out: both tokens were chosen, so both are allowed.
    """
    logits = Paged(model).step([(0, tokens)])[0][-1:].float()
    state, row, length = SamplerState(1, logits.shape[1]), np.array([0]), np.array([len(tokens)])
    state.start(0, params, prompt_len=prompt_len, seed=params.seed or 0, stream=stream, stop_ids=())
    scores = process(logits, state, row, length, np.array([tokens]))
    if state.temperature[0] == 0:
        return abs(float(scores[0, a] - scores[0, b]))
    scores = scores / float(state.temperature[0])
    (edge,) = thresholds(scores, state.top_k, state.top_p, state.log_min_p)
    noise = torch.from_numpy(philox.gumbel_rows(state.seed, state.stream, length, logits.shape[1]))[0]
    perturbed = scores[0] + noise
    return min(abs(float(x)) for x in (perturbed[a] - perturbed[b], scores[0, a] - edge, scores[0, b] - edge))
