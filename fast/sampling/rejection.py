"""Verification of drafts by rejection sampling, on the device.

What it means is ``quire.reference.sampling.rejection``; the random numbers are the same. Here it is written in torch
over whole distributions: it is there to be studied and compared with, and no step of it needs to be fast.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.sampling.penalties import penalise
from quire.fast.sampling.philox import gumbel, philox, uniform
from quire.fast.sampling.state import DeviceSamplerState
from quire.fast.sampling.truncation import thresholds
from quire.reference.control.philox import ACCEPT, SAMPLE

BLOCK = 1024  # tokens per program


def distribution(
    logits: Tensor,
    state: DeviceSamplerState,
    rows: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    *,
    penalised: bool = True,
    truncated: bool = True,
) -> Tensor:
    """What ``sample`` draws from, as probabilities float32 [R, V]; one-hot for greedy rows. Arguments as for it."""
    scores = logits.float().clone()
    if penalised:
        penalise(scores, state, rows, lengths, tokens)
    temperature = state.temperature[rows.long()][:, None]
    scaled = scores / torch.where(temperature == 0, 1.0, temperature)
    if truncated:
        lowest = thresholds(scores, state, rows).lowest
        lowest = torch.minimum(lowest, scaled.amax(-1))  # another division: it must not round the best away
        scaled.masked_fill_(scaled < lowest[:, None], -torch.inf)
    best = torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1)
    return torch.where(temperature == 0, best, scaled.softmax(-1))


def draw_from(weights: Tensor, state: DeviceSamplerState, rows: Tensor, lengths: Tensor, purpose: int) -> Tensor:
    """One token per row, its chance in proportion to ``weights`` [R, V], by the noise of ``purpose``: int64 [R]."""
    count, vocab = weights.shape
    noise = torch.empty_like(weights)
    _noise[(count, triton.cdiv(vocab, BLOCK))](rows, lengths, state.seed, state.stream, noise, vocab, purpose, BLOCK)
    return (weights.log() + noise).argmax(-1)


def reject(
    p: Tensor,
    q: Tensor,
    state: DeviceSamplerState,
    row: Tensor,
    length: Tensor,
    first: Tensor,
    tokens: Tensor,
    row_len: Tensor,
    limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Accept drafts, replace the first that is not, and put that into the rows. Arguments and results as of ``settle``.

    p   float32 [P, V], what the target draws from at each position
    q   float32 [P, V], what its draft was drawn from; zero where there is none
    """
    begin, positions = first[:-1].long(), torch.arange(len(p), device=p.device)
    sequence = torch.searchsorted(first, positions.int(), right=True) - 1
    draft = tokens[row.long(), length.clamp(max=tokens.shape[1] - 1).long()].long()
    drafted = positions < first[1:][sequence] - 1
    token = torch.where(drafted, draft, 0)
    p_x, q_x = (x.gather(1, token[:, None])[:, 0] for x in (p, q))
    accepts = drafted & (_uniform_at(state, row, length) * q_x < p_x)
    # A sequence ends at its first position where nothing is accepted.
    ends = torch.where(accepts, len(p), positions)
    last = torch.full_like(begin, len(p)).scatter_reduce_(0, sequence, ends, "amin")
    lacking = (p[last] - q[last]).clamp(min=0)
    lacking = torch.where(lacking.sum(-1, keepdim=True) > 0, lacking, p[last])  # equal but for rounding
    own = draw_from(lacking, state, row[last], length[last], SAMPLE)
    count = last - begin
    gained = count + 1
    if limit is not None:
        count, gained = torch.minimum(count, limit.long()), torch.minimum(gained, limit.long())
    mine, place = row[begin].long(), (length[begin] + count).long()
    own = torch.where(gained > count, own, tokens[mine, place].long())
    tokens[mine, place] = own.int()
    row_len[mine] = (length[begin] + gained).int()
    return token.scatter(0, (begin + count).clamp(max=len(p) - 1), own), count.int()


def _uniform_at(state: DeviceSamplerState, rows: Tensor, lengths: Tensor) -> Tensor:
    """The number in (0, 1) that decides about the draft at each position: float32 [P]."""
    out = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    _uniforms[(len(rows),)](rows, lengths, state.seed, state.stream, out, ACCEPT)
    return out


@triton.jit
def _uniforms(rows, lengths, seed, stream, out, PURPOSE: tl.constexpr):
    i = tl.program_id(0)
    w0, _, _, _ = _words(rows, lengths, seed, stream, i, i * 0, PURPOSE)
    tl.store(out + i, uniform(w0))


@triton.jit
def _noise(rows, lengths, seed, stream, noise, vocab, PURPOSE: tl.constexpr, BLOCK: tl.constexpr):
    r, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = _words(rows, lengths, seed, stream, r, i // 4, PURPOSE)
    word = tl.where(i % 4 < 2, tl.where(i % 4 == 0, w0, w1), tl.where(i % 4 == 2, w2, w3))
    tl.store(noise + r.to(tl.int64) * vocab + i, gumbel(word), mask=i < vocab)


@triton.jit
def _words(rows, lengths, seed, stream, r, quad, PURPOSE: tl.constexpr):
    row = tl.load(rows + r)
    key = tl.load(seed + row)
    k0, k1 = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    position, sibling = tl.load(lengths + r).to(tl.uint32), tl.load(stream + row).to(tl.uint32)
    zero = (quad * 0 + r * 0).to(tl.uint32)
    return philox(zero + quad.to(tl.uint32), zero + position, zero + sibling, zero + PURPOSE, k0, k1)
