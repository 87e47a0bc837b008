"""Log-probabilities of the raw logits: what the model thinks, untouched by temperature, penalties and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quire.reference.control.plan import Logprobs


def top_logprobs(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Logprobs]:
    """The log-probability of each position's token and of the most likely ones.

    logits [N, V], any float dtype; token_ids int64 [N], the token that stands at each position; counts [N], how many of
    the most likely tokens are wanted (0 = none). -> one ``Logprobs`` per position.

    The order is by falling log-probability, equal ones by rising token id. ``rank`` is the token's place in exactly
    this order, so that a token of rank r is the r-th of the top list.
    """
    return as_logprobs(rank_tokens(logits, token_ids, max(counts, default=0)), counts)


class Ranked(NamedTuple):
    """What ``top_logprobs`` says, as tensors: N positions, and ``most`` of the likeliest tokens for each."""

    token_ids: Tensor  # int64 [N]
    logprobs: Tensor  # float32 [N]
    ranks: Tensor  # int64 [N]
    top_ids: Tensor  # int64 [N, most]
    top_logprobs: Tensor  # float32 [N, most]


def rank_tokens(logits: Tensor, token_ids: Tensor, most: int) -> Ranked:
    """The half of ``top_logprobs`` that computes; the host waits for nothing."""
    vocab = logits.shape[1]
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, token_ids[:, None])
    ids = torch.arange(vocab, device=logits.device)
    before = (logprobs > own) | ((logprobs == own) & (ids < token_ids[:, None]))
    most = min(most, vocab)
    top_ids = token_ids[:, None][:, :0]
    if most > 0:
        top_ids = vocab - 1 - (_order_keys(logprobs).topk(most).values & 0xFFFFFFFF)
    return Ranked(token_ids, own[:, 0], before.sum(-1) + 1, top_ids, logprobs.gather(1, top_ids))


def as_logprobs(ranked: Ranked, counts: Sequence[int]) -> list[Logprobs]:
    """The other half: one ``Logprobs`` per position, with ``counts`` of the likeliest tokens each."""
    rows = zip(*(tensor.tolist() for tensor in ranked), counts)
    return [Logprobs([t, *i[:n]], [value, *v[:n]], rank) for t, value, rank, i, v, n in rows]


def _order_keys(values: Tensor) -> Tensor:
    """float32 [N, V] -> int64 keys that sort by value, then by falling index: no two are equal.

    The bits of a float, read as a signed integer, sort like the float if it is positive and in reverse if it is
    negative; flipping the lower 31 bits of negative ones mends that. Adding 0.0 turns -0.0 into 0.0.
    """
    bits = (values + 0.0).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    falling = torch.arange(values.shape[1] - 1, -1, -1, device=values.device)
    return (ordered << 32) | falling
