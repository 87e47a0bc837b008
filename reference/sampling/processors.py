"""What is done to logits before the temperature: masks, then ``logit_bias``, then penalties.

Only rows that asked for something are touched. Masks come first and are hard: a masked token is -inf, which no bias or
penalty can undo. They apply one after the other,

    grammar → allowed_token_ids → bad words → min_tokens

and *a mask that would leave no token is skipped at that position*: a grammar is never broken by a bad word, nor a
bad word's ban by nothing at all, and no row can end up without a token. (Where there is a grammar the others are in
its mask already, and none is skipped: see ``quire.reference.structured.matchers``.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.sampling.state import Rules, SamplerState

Ints = npt.NDArray[np.int64]
Mask = Any  # bool [V'] with V' <= V, NumPy or torch; True = allowed, tokens beyond V' are not


def process(
    logits: Tensor,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    masks: Mapping[int, Mask] | None = None,
) -> Tensor:
    """Scores [R, V] for the raw ``logits``: the same tensor if no row asks for anything, else a changed copy.

    Arguments as for ``sample``.
    """
    masks = masks or {}
    generated = lengths - state.prompt_len[rows]
    ruled = state.lasting[rows] | (generated < state.min_tokens[rows])
    if masks:
        ruled[list(masks)] = True
    penalised = state.penalised[rows]
    if not (ruled.any() or penalised.any()):
        return logits
    scores = logits.clone()
    if ruled.any():
        _apply_rules(scores, np.flatnonzero(ruled), state, rows, lengths, tokens, masks)
    if penalised.any():
        _apply_penalties(scores, np.flatnonzero(penalised), state, rows, lengths, tokens)
    return scores


def _apply_rules(
    scores: Tensor,
    which: Ints,
    state: SamplerState,
    rows: Ints,
    lengths: Ints,
    tokens: npt.NDArray[np.integer],
    masks: Mapping[int, Mask],
) -> None:
    """Masks and biases of the rows ``which`` (indices into the batch), in place."""
    keep = np.ones((len(which), scores.shape[1]), bool)
    bias_at: list[tuple[int, Rules]] = []
    for i, r in enumerate(which.tolist()):
        row, length = rows[r], lengths[r]
        rules = state.rules[row]
        assert rules is not None, f"row {row} was never started"
        output = tokens[row, state.prompt_len[row] : length]
        if r in masks:
            mask = np.zeros(keep.shape[1], bool)
            mask[: len(masks[r])] = masks[r]
            _restrict(keep[i], mask)
        if rules.allowed is not None:
            mask = np.zeros(keep.shape[1], bool)
            mask[rules.allowed] = True
            _restrict(keep[i], mask)
        if rules.bad_words:
            _forbid(keep[i], banned_by_bad_words(rules.bad_words, output))
        if len(output) < state.min_tokens[row]:
            _forbid(keep[i], rules.stop_ids)
        if len(rules.bias_ids):
            bias_at.append((r, rules))
    index = torch.from_numpy(which).to(scores.device)
    scores[index] = scores[index].masked_fill(torch.from_numpy(~keep).to(scores.device), -torch.inf)
    for r, rules in bias_at:
        ids = torch.from_numpy(rules.bias_ids).to(scores.device)
        scores[r, ids] += torch.from_numpy(rules.bias_values).to(scores.device)


def banned_by_bad_words(bad_words: tuple[tuple[int, ...], ...], output: npt.NDArray[np.integer]) -> Ints:
    """The tokens that would complete one of the words: the last one of each whose others end the output so far."""
    longest = max(len(word) for word in bad_words)
    recent = tuple(output[max(0, len(output) - longest) :].tolist())
    banned = [word[-1] for word in bad_words if len(word) == 1 or recent[-(len(word) - 1) :] == word[:-1]]
    return np.array(banned, np.int64)


def _restrict(keep: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> None:
    """keep &= mask, unless that would leave nothing."""
    both = keep & mask
    if both.any():
        keep[:] = both


def _forbid(keep: npt.NDArray[np.bool_], token_ids: Ints) -> None:
    """Take ``token_ids`` out of ``keep``, unless that would leave nothing."""
    before = keep[token_ids].copy()
    keep[token_ids] = False
    if before.any() and not keep.any():
        keep[token_ids] = before


def _apply_penalties(
    scores: Tensor, which: Ints, state: SamplerState, rows: Ints, lengths: Ints, tokens: npt.NDArray[np.integer]
) -> None:
    """Repetition, then frequency and presence penalties of the rows ``which``, in place.

    Only the tokens that stand in the history are touched: pairs (row, token) are sorted as one integer each.
    """
    vocab = scores.shape[1]
    flat = scores.view(-1)

    def pairs(members: Ints, begin: Ints) -> Ints:
        """(index in the batch) * V + token, for every token of the members' histories from ``begin`` on."""
        parts = [r * vocab + tokens[rows[r], b : lengths[r]].astype(np.int64) for r, b in zip(members, begin)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    members = which[state.repetition[rows[which]] != 1]
    seen = np.unique(pairs(members, np.zeros_like(members)))
    if len(seen):
        at = torch.from_numpy(seen).to(flat.device)
        penalty = torch.from_numpy(state.repetition[rows[seen // vocab]]).to(flat.device)
        value = flat[at]
        flat[at] = torch.where(value > 0, value / penalty, value * penalty)

    members = which[(state.frequency[rows[which]] != 0) | (state.presence[rows[which]] != 0)]
    seen, counts = np.unique(pairs(members, state.prompt_len[rows[members]]), return_counts=True)
    if len(seen):
        row = rows[seen // vocab]
        at = torch.from_numpy(seen).to(flat.device)
        frequency = torch.from_numpy(state.frequency[row] * counts.astype(np.float32)).to(flat.device)
        flat[at] = flat[at] - frequency - torch.from_numpy(state.presence[row]).to(flat.device)
