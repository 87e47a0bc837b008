"""The online softmax that both attention kernels are built from, one tile of keys at a time."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def scores_of(q, k, scale, soft_cap, CAPPED: tl.constexpr):
    """q [M, D] against k [D, N] -> scores [M, N] in units of log 2, because exp2 is what the hardware has."""
    scores = tl.dot(q, k, input_precision="ieee") * (scale * LOG2E)
    if CAPPED:
        # tanh(x) = 1 - 2 / (exp(2x) + 1); the scores are x * soft_cap * log2(e) here.
        capped = 1 - 2 / (tl.exp2(scores * (2 / soft_cap)) + 1)
        scores = capped * (soft_cap * LOG2E)
    return scores


@triton.jit
def softmax_step(scores, v, m, l, acc):
    """Take one tile of keys in: scores [M, N] (-inf = unseen), v [N, D]; running m, l [M] and acc [M, D], all updated.

    A row that has seen no key yet has m = -inf; zero takes its place as the exponent's base, so that no NaN arises.
    """
    m_new = tl.maximum(m, tl.max(scores, 1))
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return m_new, l, acc
