"""Choosing the token in one pass over the logits: argmax(logits / T + Gumbel noise) over the kept tokens.

The idea. Sampling by noise needs no softmax, no sort and no cumulative sum: it is a maximum, and a maximum can be taken
piece by piece. Each program walks over a part of a row with its best score so far; tokens whose score plus an upper
bound of their noise does not reach it are done with after a dozen integer operations. Greedy rows are the same without
noise. Truncation (top-k, top-p, min-p) comes in as one number per row, the lowest score that is kept
(``truncation.py``), penalties are applied in place to the few tokens that stand in a history (``penalties.py``).

The noise is the reference's, by the same counters, so the choice is the reference's, except where two scores are within
float32's rounding of each other. Equal scores: the lowest token id.

Roofline: bytes; the logits once. Measured on an H200, 256 rows of 151,936 in float32: greedy 44 µs, 80% of the memory
bandwidth; with noise 74 µs. There the integer arithmetic of Philox is the bound, not memory: bfloat16 takes 84.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, num_processors, overlap
from quire.fast.sampling.penalties import penalise
from quire.fast.sampling.philox import gumbel, gumbel_bound, philox
from quire.fast.sampling.state import DeviceSamplerState
from quire.fast.sampling.truncation import CAPACITY, scaled, thresholds

BLOCK = 256  # logits per iteration: eight per lane of a single warp, which waits for no other
PROGRAMS_PER_PROCESSOR = 48


def sample(
    logits: Tensor,
    state: DeviceSamplerState,
    rows: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    masks: Tensor | None = None,
    *,
    penalised: bool = True,
    truncated: bool = True,
) -> Tensor:
    """Choose one token per position.

    logits   [R, V], float32 or the model's own dtype, raw; unchanged afterwards
    state    parameters of all rows
    rows     int [R], the row in ``state`` and ``tokens`` that each position belongs to
    lengths  int [R], tokens known before this position; the chosen token becomes number ``lengths[i]``
    tokens   int [num_rows, ...], the rows' histories; read up to ``lengths`` only
    masks    bool [R, V], True = allowed; None: everything is
    penalised, truncated   False: no row of the batch has any, which the host knows; it saves launches

    -> int64 [R]. Everything is on one device; the host waits for nothing.
    """
    count, vocab = logits.shape
    if masks is not None:
        logits = logits.masked_fill(~masks, -torch.inf)
    if penalised:
        logits = logits.float()
    edits = penalise(logits, state, rows, lengths, tokens) if penalised else None
    kept = thresholds(logits, state, rows) if truncated else None
    most = triton.cdiv(vocab, BLOCK)
    parts = min(most, triton.cdiv(PROGRAMS_PER_PROCESSOR * num_processors(logits.device), max(count, 1)))
    blocks = triton.cdiv(most, parts)  # per part
    best = torch.empty(count, parts, dtype=torch.float32, device=logits.device)
    token = torch.empty(count, parts, dtype=torch.int32, device=logits.device)
    chosen = torch.empty(count, dtype=torch.int64, device=logits.device)
    if count:
        _choose[(parts, count)](
            logits, *(vars(kept).values() if kept else [None] * 4),
            rows, lengths, state.temperature, state.seed, state.stream, best, token,
            vocab, logits.stride(0), blocks,
            TRUNCATED=kept is not None, CAPACITY=CAPACITY, BLOCK=BLOCK, num_warps=1, **OVERLAP,
        )  # fmt: skip
        _best_part[(count,)](best, token, chosen, parts, triton.next_power_of_2(most), num_warps=1, **OVERLAP)
    if edits is not None:
        edits.undo(logits)
    return chosen


@triton.jit(do_not_specialize=["blocks"])
def _choose(
    logits, lowest, size, scores, ids, rows, lengths, temperature, seed, stream, best_of, token_of,
    vocab, stride, blocks, TRUNCATED: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (part of the vocabulary, position): the best perturbed score of the part, and whose it is."""
    overlap()
    part, r = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + r)
    t = tl.load(temperature + row)
    random = t > 0
    t = tl.where(random, t, 1.0)
    key = tl.load(seed + row)
    k0, k1 = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    position, sibling = tl.load(lengths + r).to(tl.uint32), tl.load(stream + row).to(tl.uint32)
    keep = float("-inf")
    inverse = 1.0 / t
    best = float("-inf")
    token = 0
    begin, stop = part * blocks, part * blocks + blocks
    if TRUNCATED:
        keep = tl.load(lowest + r)
        listed = tl.load(size + r)
        for start in range(part * BLOCK, listed, tl.num_programs(0) * BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(scores + r * CAPACITY + at, mask=at < listed, other=float("-inf"))
            i = tl.load(ids + r * CAPACITY + at, mask=at < listed, other=0)
            x = tl.where(x >= keep, x, float("-inf"))
            best, token = _draw_listed(x, i, position, sibling, k0, k1, best, token)
        stop = tl.where(listed >= 0, begin, stop)  # then no more is to be read
    if random:
        for j in range(begin, stop):
            x = _load(logits, r, stride, j * BLOCK + tl.arange(0, BLOCK), vocab)
            if TRUNCATED:
                x = scaled(x, t)
                x = tl.where(x >= keep, x, float("-inf"))
                if tl.max(x, 0) > float("-inf"):  # most blocks keep nothing
                    best, token = _draw(x, x, 1.0, j, position, sibling, k0, k1, best, token, BLOCK)
            else:
                # The division proper is for the few that matter.
                best, token = _draw(x * inverse, x, t, j, position, sibling, k0, k1, best, token, BLOCK)
    else:
        # With so little to compute, reading decides, and wide loads read best.
        lane = tl.arange(0, 2 * BLOCK)
        tops = tl.full([2 * BLOCK], float("-inf"), tl.float32)
        where = lane * 0
        for i in range(begin * BLOCK, stop * BLOCK, 2 * BLOCK):
            x = _load(logits, r, stride, i + lane, tl.minimum(vocab, stop * BLOCK))
            where = tl.where(x > tops, i, where)
            tops = tl.maximum(x, tops)
        best = tl.max(tops, 0)
        token = tl.min(tl.where(tops == best, where + lane, 0x7FFFFFFF), 0)
    tl.store(best_of + r * tl.num_programs(0) + part, best)
    tl.store(token_of + r * tl.num_programs(0) + part, token)


@triton.jit
def _load(logits, r, stride, i, end):
    return tl.load(logits + r.to(tl.int64) * stride + i, mask=i < end, other=float("-inf")).to(tl.float32)


@triton.jit
def _draw(near, x, t, j, position, sibling, k0, k1, best, token, BLOCK: tl.constexpr):
    """The better of (best, token) and block j with noise. Its scores are x / t, and nearly so (to 1e-6) ``near``."""
    # Four neighbours share one call of the generator.
    lane = tl.arange(0, BLOCK // 4)
    zero = (lane * 0).to(tl.uint32)
    quad = (j * (BLOCK // 4) + lane).to(tl.uint32)
    w0, w1, w2, w3 = philox(quad, zero + position, zero + sibling, zero, k0, k1)
    y0, y1, y2, y3 = _quads(near, BLOCK)
    reach = tl.maximum(
        tl.maximum(y0 + gumbel_bound(w0), y1 + gumbel_bound(w1)),
        tl.maximum(y2 + gumbel_bound(w2), y3 + gumbel_bound(w3)),
    )
    if tl.max(reach, 0) > best:
        x0, x1, x2, x3 = _quads(scaled(x, t), BLOCK)
        x0 += gumbel(w0)
        x1 += gumbel(w1)
        x2 += gumbel(w2)
        x3 += gumbel(w3)
        top = tl.max(tl.maximum(tl.maximum(x0, x1), tl.maximum(x2, x3)), 0)
        i = j * BLOCK + 4 * lane
        first = tl.where(x0 == top, i, tl.where(x1 == top, i + 1, tl.where(x2 == top, i + 2, i + 3)))
        has = (x0 == top) | (x1 == top) | (x2 == top) | (x3 == top)
        if top > best:
            best = top
            token = tl.min(tl.where(has, first, 0x7FFFFFFF), 0)
    return best, token


@triton.jit
def _draw_listed(x, i, position, sibling, k0, k1, best, token):
    """The better of (best, token) and the tokens ``i``, in any order, with scores ``x`` and noise."""
    zero = (i * 0).to(tl.uint32)
    w0, w1, w2, w3 = philox((i // 4).to(tl.uint32), zero + position, zero + sibling, zero, k0, k1)
    word = tl.where(i % 4 < 2, tl.where(i % 4 == 0, w0, w1), tl.where(i % 4 == 2, w2, w3))
    x += gumbel(word)
    top = tl.max(x, 0)
    first = tl.min(tl.where(x == top, i, 0x7FFFFFFF), 0)
    if (top > best) | ((top == best) & (first < token)):
        best = top
        token = first
    return best, token


@triton.jit
def _quads(x, BLOCK: tl.constexpr):
    """[BLOCK] -> four of [BLOCK / 4]: the elements 0, 1, 2 and 3 of each four neighbours."""
    even, odd = tl.split(tl.reshape(x, [BLOCK // 4, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit(do_not_specialize=["parts"])
def _best_part(best, token, chosen, parts, BLOCK: tl.constexpr):
    overlap()
    r, i = tl.program_id(0), tl.arange(0, BLOCK)
    score = tl.load(best + r * parts + i, mask=i < parts, other=float("-inf"))
    candidate = tl.load(token + r * parts + i, mask=i < parts, other=0)
    top = tl.max(score, 0)
    found = tl.min(tl.where((score == top) & (i < parts), candidate, 0x7FFFFFFF), 0)
    tl.store(chosen + r, tl.where(top == float("-inf"), 0, found).to(tl.int64))
