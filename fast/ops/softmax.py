"""The online softmax that both attention kernels are built from, one tile of keys at a time."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def scores_of(q, k, scale, soft_cap, CAPPED: tl.constexpr):
    """q [M, D] against k [D, N] -> raw scores [M, N] and the factor (positive) that takes them to units of log 2.

    Units of log 2, because exp2 is what the hardware has; a factor of its own, because the multiplication is free in
    ``softmax_step``, where it becomes part of a fused multiply-add.
    """
    scores = tl.dot(q, k, input_precision="ieee")
    if CAPPED:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
        power = tl.exp2(scores * (2 * LOG2E * scale / soft_cap))
        return soft_cap - 2 * soft_cap / (power + 1), LOG2E
    else:
        return scores, scale * LOG2E


@triton.jit
def softmax_step(scores, factor, v, m, sums, acc, MASKED: tl.constexpr, IN_ORDER: tl.constexpr = False):
    """Take one tile of keys in: scores [M, N] (-inf = unseen), v [N, D]; running m, sums [M], acc [M, D].

    If MASKED a row may have seen no key yet; its m is -inf, and zero takes its place as the exponent's base.
    IN_ORDER: add the weights up by the matrix units too. Their sums have the same order in every shape of tile, while
    that of ``tl.sum`` depends on how a tile is spread over threads.
    """
    m_new = tl.maximum(m, tl.max(scores, 1) * factor)
    base = tl.where(m_new == float("-inf"), 0.0, m_new) if MASKED else m_new
    weights = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(m - base)
    if IN_ORDER:
        ones = tl.full([weights.shape[1], 16], 1.0, v.dtype)
        added = tl.max(tl.dot(weights.to(v.dtype), ones, input_precision="ieee"), 1)  # 16 equal columns
    else:
        added = tl.sum(weights, 1)
    sums = tl.fma(sums, shrink, added)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return m_new, sums, acc


@triton.jit
def merge_weights(m, lse):
    """Take in a partial result with log-sum-exp ``lse``: -> new m, and by what the old and the new result shrink."""
    m_new = tl.maximum(m, lse)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    return m_new, tl.exp2(m - base), tl.exp2(lse - base)
