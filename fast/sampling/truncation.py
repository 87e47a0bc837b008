"""min_p, top-k and top-p as one number per row, the lowest score that is kept, found without sorting the vocabulary.

The idea: get cheaply to a short list of scores that certainly holds the threshold, and settle it there.

- *top-k.* Split a row into GROUPS groups and take each group's largest score. At least k scores reach the k-th largest
  of these, so the threshold is no lower; and as groups rarely hold two of the k best, hardly more than k do.
- *min-p* is a lower bound by itself.
- *top-p alone.* Where the groups' largest scores have the mass already, as with a model that is sure of itself, the one
  at which they reach it is a lower bound. Otherwise: how much probability reaches a score is a monotone function of the
  score. One pass measures it at SPLITS scores at once, so two passes shrink the interval of the threshold by
  (SPLITS + 1)^2 = 289.

Scores within the bounds are appended to the row's list in any order. Sums over the list are taken in 64-bit integers,
so that the order has no influence. Where a list overflows (equal logits, huge k) the row itself is searched instead:
slow, and just as right. The thresholds are exact in float32; ties are kept. A list that holds all that is kept is the
sampler's best gift: it draws from the list and does not read the row again.

Roofline: bytes; the logits once for the bounds, once for the list, and twice more for a flat top-p alone. Measured on
an H200, 256 rows of 151,936 logits in float32, drawing included, where reading them once takes 50 µs: top-k 50 144 µs,
min-p 167, top-p 148 where logits are peaked. For flat normal logits, of which top-p keeps a third, 641: those passes
evaluate 16 comparisons per logit and are bound by arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap
from quire.fast.sampling.state import DeviceSamplerState

BLOCK = 1024  # scores per iteration
GROUPS = 4096
SPLITS = 16
CAPACITY = 4096  # of a row's list
SETTLING = 256  # scores looked at together in the last step, by one warp
LISTING = 512  # scores per iteration of the pass that lists them


@dataclass
class Kept:
    """What truncation leaves of each row.

    lowest  float32 [R], the lowest kept score (logit / temperature); -inf: the row is greedy or not truncated
    size    int32 [R], the number of listed tokens if they hold all that is kept, else -1
    scores  float32 [R, CAPACITY], of the listed tokens, in any order
    ids     int32 [R, CAPACITY], the listed tokens
    """

    lowest: Tensor
    size: Tensor
    scores: Tensor
    ids: Tensor


def thresholds(logits: Tensor, state: DeviceSamplerState, rows: Tensor) -> Kept:
    """logits [R, V]; rows int [R] in ``state`` -> what is kept of each row."""
    (count, vocab), device = logits.shape, logits.device

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, device=device)

    parts = 4 if count >= 128 else 32
    blocks = triton.cdiv(vocab, parts * BLOCK)
    largest, total, groups = new(parts), new(parts), new(GROUPS)
    best, low, high, goal, above = (new() for _ in range(5))
    mass, found = new(parts, SPLITS), new(dtype=torch.int32)
    kept = Kept(low, found, new(CAPACITY), new(CAPACITY, dtype=torch.int32))
    if count == 0:
        return kept
    row = (logits, rows, state.temperature, logits.stride(0), vocab, blocks)
    limits = (state.temperature, state.top_k, state.log_min_p, state.top_p)
    per_part, per_row = (parts, count), (count,)
    _summarise[per_part](
        *row, state.top_k, state.log_min_p, largest, total, groups,
        BLOCK=BLOCK, GROUPS=GROUPS // parts, num_warps=4, **OVERLAP,
    )  # fmt: skip
    _bound[per_row](
        rows, *limits, largest, total, groups, best, low, high, goal, above, found, vocab,
        PARTS=parts, GROUPS=GROUPS, num_warps=8, **OVERLAP,
    )  # fmt: skip
    for _ in range(2):
        _measure[per_part](*row, best, low, high, goal, mass, BLOCK=BLOCK, SPLITS=SPLITS, num_warps=8, **OVERLAP)
        _narrow[per_row](low, high, goal, above, mass, PARTS=parts, SPLITS=SPLITS, num_warps=1, **OVERLAP)
    shares = (8 if count >= 128 else 2) * parts  # waiting for their turn to append, many programs hide it
    _list[(shares, count)](
        *row[:-1], triton.cdiv(vocab, shares * LISTING), low, high, found, kept.scores, kept.ids,
        BLOCK=LISTING, CAPACITY=CAPACITY, num_warps=1, **OVERLAP,
    )  # fmt: skip
    _settle[per_row](
        *row[:5], *limits[1:], best, low, high, goal, above, found, kept.scores,
        CAPACITY=CAPACITY, BLOCK=SETTLING, num_warps=1, **OVERLAP,
    )  # fmt: skip
    return kept


@triton.jit
def scaled(x, t):
    """x / t, rounded as a division is, in three fused steps; t is a positive scalar."""
    inverse = 1.0 / t
    quotient = x * inverse
    mended = tl.fma(tl.fma(-quotient, t, x), inverse, quotient)
    return tl.where(x == float("-inf"), x, mended)


@triton.jit
def _scores(logits, r, stride, i, vocab, t):
    raw = tl.load(logits + r.to(tl.int64) * stride + i, mask=i < vocab, other=float("-inf")).to(tl.float32)
    return scaled(raw, t)


@triton.jit
def _summarise(
    logits, rows, temperature, stride, vocab, blocks, top_k, log_min_p, largest, total, groups,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Program (part, position): the part's largest score, its sum of exp(score - largest), its groups' largest."""
    overlap()
    part, r = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + r)
    t = tl.load(temperature + row)
    if t == 0:
        return
    summing = (tl.load(top_k + row) >= vocab) & (tl.load(log_min_p + row) == float("-inf"))  # else nobody asks
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for j in range(part * blocks, part * blocks + blocks):
        x = _scores(logits, r, stride, j * BLOCK + tl.arange(0, BLOCK), vocab, t)
        higher = tl.maximum(top, x)
        if summing:
            base = tl.where(higher == float("-inf"), 0.0, higher)
            sums = sums * tl.exp(top - base) + tl.exp(x - base)
        top = higher
    peak = tl.max(top, 0)
    floor = tl.where(peak == float("-inf"), 0.0, peak)
    to = r * tl.num_programs(0) + part
    tl.store(largest + to, peak)
    tl.store(total + to, tl.sum(sums * tl.exp(top - floor), 0))
    folded = tl.max(tl.reshape(top, [BLOCK // GROUPS, GROUPS]), 0)
    tl.store(groups + to * GROUPS + tl.arange(0, GROUPS), folded)


@triton.jit
def _bound(
    rows, temperature, top_k, log_min_p, top_p, largest, total, groups, best, low, high, goal, above, found, vocab,
    PARTS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The interval [low, high) in which the row's threshold lies, and for top-p alone the mass to be reached.

    goal > 0: the mass to be reached; 0: to be found on the list; -1: the row is not truncated. ``high`` is infinite
    where the interval is short enough; else it is to be narrowed. above: the mass of scores from ``high`` on.
    """
    overlap()
    r = tl.program_id(0)
    row = tl.load(rows + r)
    k, p, min_p = tl.load(top_k + row), tl.load(top_p + row), tl.load(log_min_p + row)
    i = tl.arange(0, PARTS)
    lower = float("-inf")
    tl.store(found + r, 0)
    tl.store(above + r, 0.0)
    tl.store(high + r, float("inf"))
    wanted = -1.0
    if (tl.load(temperature + row) > 0) & ((k < vocab) | (p < 1) | (min_p > float("-inf"))):
        peaks = tl.load(largest + r * PARTS + i)
        peak = tl.max(peaks, 0)
        tl.store(best + r, peak)
        mass = tl.sum(tl.load(total + r * PARTS + i) * tl.exp(peaks - peak), 0)
        wanted = 0.0
        lower = tl.maximum(lower, peak + min_p)
        if k <= GROUPS // 2:
            tops = _key(tl.load(groups + r * GROUPS + tl.arange(0, GROUPS)))
            a, b = tl.min(tops, 0).to(tl.int64), tl.max(tops, 0).to(tl.int64)
            while a < b:  # the largest key that k groups reach
                middle = (a + b + 1) >> 1
                if tl.sum((tops >= middle).to(tl.int32), 0) >= k:
                    a = middle
                else:
                    b = middle - 1
            lower = tl.maximum(lower, _unkey(a.to(tl.int32)))
        elif (k >= vocab) & (min_p == float("-inf")):
            wanted = p * mass
            tops = tl.load(groups + r * GROUPS + tl.arange(0, GROUPS))
            weight, tops = tl.exp(tops - peak), _key(tops)
            enough = wanted * (1 + 1e-4)  # for rounding
            if tl.sum(weight, 0) >= enough:
                a, b = tl.min(tops, 0).to(tl.int64), tl.max(tops, 0).to(tl.int64)
                while a < b:  # the largest key from which on the groups have the mass
                    middle = (a + b + 1) >> 1
                    if tl.sum(tl.where(tops >= middle, weight, 0.0), 0) >= enough:
                        a = middle
                    else:
                        b = middle - 1
                lower = _unkey(a.to(tl.int32))
            else:
                # Tokens lighter than (1 - p) * mass / V weigh less than (1 - p) * mass together. (Half, for rounding.)
                lower = peak + tl.log(tl.maximum(0.5 * (1 - p), 1e-7) * mass / vocab)
                tl.store(high + r, peak + tl.abs(peak) * 1e-6 + 1e-6)  # just above: its mass is zero
    tl.store(low + r, lower)
    tl.store(goal + r, wanted)


@triton.jit
def _measure(
    logits, rows, temperature, stride, vocab, blocks, best, low, high, goal, mass,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (part, position): the part's mass, sum of exp(score - best), from each of the splits on."""
    overlap()
    part, r = tl.program_id(0), tl.program_id(1)
    if (tl.load(goal + r) <= 0) | (tl.load(high + r) == float("inf")):
        return
    t = tl.load(temperature + tl.load(rows + r))
    peak = tl.load(best + r)
    split = _splits(tl.load(low + r), tl.load(high + r), SPLITS)
    sums = tl.zeros([SPLITS, BLOCK], tl.float32)
    for j in range(part * blocks, part * blocks + blocks):
        x = _scores(logits, r, stride, j * BLOCK + tl.arange(0, BLOCK), vocab, t)
        weight = tl.exp(x - peak)
        sums += tl.where(x[None, :] >= split[:, None], weight[None, :], 0.0)
    to = (r * tl.num_programs(0) + part) * SPLITS + tl.arange(0, SPLITS)
    tl.store(mass + to, tl.sum(sums, 1))


@triton.jit
def _splits(low, high, SPLITS: tl.constexpr):
    return low + (high - low) * ((tl.arange(0, SPLITS) + 1).to(tl.float32) / (SPLITS + 1))


@triton.jit
def _narrow(low, high, goal, above, mass, PARTS: tl.constexpr, SPLITS: tl.constexpr):
    overlap()
    r = tl.program_id(0)
    wanted = tl.load(goal + r)
    if (wanted > 0) & (tl.load(high + r) < float("inf")):
        a, b = tl.load(low + r), tl.load(high + r)
        split = _splits(a, b, SPLITS)
        at = (r * PARTS + tl.arange(0, PARTS))[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
        sums = tl.sum(tl.load(mass + at), 0)
        enough = sums >= wanted
        tl.store(low + r, tl.max(tl.where(enough, split, a), 0))
        tl.store(high + r, tl.min(tl.where(enough, b, split), 0))
        tl.store(above + r, tl.max(tl.where(enough, tl.load(above + r), sums), 0))


@triton.jit
def _list(
    logits, rows, temperature, stride, vocab, blocks, low, high, found, scores, ids,
    BLOCK: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Program (part, position): append the part's tokens in the interval; ``found`` also counts what finds no room."""
    overlap()
    part, r = tl.program_id(0), tl.program_id(1)
    a, b = tl.load(low + r), tl.load(high + r)
    if a == float("-inf"):
        return  # not truncated, or nothing is known of the threshold
    t = tl.load(temperature + tl.load(rows + r))
    for j in range(part * blocks, part * blocks + blocks):
        i = j * BLOCK + tl.arange(0, BLOCK)
        x = _scores(logits, r, stride, i, vocab, t)
        within = ((x >= a) & (x < b)).to(tl.int32)
        count = tl.sum(within, 0)
        if count > 0:
            at = tl.atomic_add(found + r, count) + tl.cumsum(within, 0) - 1
            tl.store(scores + r * CAPACITY + at, x, mask=(within > 0) & (at < CAPACITY))
            tl.store(ids + r * CAPACITY + at, i, mask=(within > 0) & (at < CAPACITY))


@triton.jit
def _settle(
    logits, rows, temperature, stride, vocab, top_k, log_min_p, top_p, best, low, high, goal, above, found, listed,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (position): the threshold by bisection over the list, or over the row where the list does not hold it."""
    overlap()
    r = tl.program_id(0)
    wanted = tl.load(goal + r)
    if wanted < 0:
        tl.store(found + r, -1)
        return
    row = tl.load(rows + r)
    t = tl.load(temperature + row)
    k, p = tl.load(top_k + row), tl.load(top_p + row)
    peak = tl.load(best + r)
    lowest, end = tl.load(low + r), tl.load(high + r)
    size = tl.load(found + r)
    if (size > CAPACITY) | (lowest == float("-inf")):
        size = -1
    if (size < 0) | (end < float("inf")):
        tl.store(found + r, -1)
    source, scores = logits + r.to(tl.int64) * stride, listed + r * CAPACITY
    if k < vocab:
        lowest = _largest(source, vocab, t, scores, size, lowest, end, peak, k.to(tl.int64), 0, BLOCK)
    if p < 1:
        if wanted > 0:
            aim = ((wanted - tl.load(above + r)) * _UNIT).to(tl.int64)
        else:
            mass = _reaching(source, vocab, t, scores, size, lowest, end, peak, 1, BLOCK)
            aim = (p.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)
        lowest = _largest(source, vocab, t, scores, size, lowest, end, peak, aim, 1, BLOCK)
    tl.store(low + r, lowest)


_UNIT = tl.constexpr(2.0**40)  # masses as integers: exp(score - best) in units of 2^-40


@triton.jit
def _largest(source, vocab, t, scores, size, low, high, peak, aim, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest score from which on the count (or MASS) below ``high`` reaches ``aim``; else ``low``."""
    a, b = _key(low).to(tl.int64), _key(peak).to(tl.int64)
    while a < b:
        middle = (a + b + 1) >> 1
        x = _unkey(middle.to(tl.int32))
        if _reaching(source, vocab, t, scores, size, x, high, peak, MASS, BLOCK) >= aim:
            a = middle
        else:
            b = middle - 1
    return _unkey(a.to(tl.int32))


@triton.jit
def _reaching(source, vocab, t, scores, size, low, high, peak, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Number of scores in [low, high), or their mass, among the listed, or in the row's logits if size is -1."""
    total = tl.zeros([BLOCK], tl.int64)
    i = tl.arange(0, BLOCK)
    if size >= 0:
        for start in range(0, size, BLOCK):
            x = tl.load(scores + start + i, mask=start + i < size, other=float("-inf"))
            total += _amount(x, low, high, peak, MASS)
    else:
        for start in range(0, vocab, BLOCK):
            raw = tl.load(source + start + i, mask=start + i < vocab, other=float("-inf")).to(tl.float32)
            total += _amount(scaled(raw, t), low, high, peak, MASS)
    return tl.sum(total, 0)


@triton.jit
def _amount(x, low, high, peak, MASS: tl.constexpr):
    inside = (x >= low) & (x < high) & (x > float("-inf"))
    if MASS:
        return tl.where(inside, (tl.exp(x - peak) * _UNIT).to(tl.int64), 0)
    else:
        return inside.to(tl.int64)


@triton.jit
def _key(x):
    """float32 -> int32 that sorts like it: the lower 31 bits of negative numbers are flipped. -0.0 is 0.0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unkey(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
