"""Masks and biases of the few rows that have them, on the device and without looking at any token on the host.

What they mean is ``quire.reference.sampling.processors``: grammar, allowed_token_ids, bad words, min_tokens, each
skipped where it would leave no token, then logit_bias. Bad words of several tokens depend on the last ones of a
sequence; these are compared where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.sampling import SamplerState
from quire.reference.sampling.state import Rules


@dataclass
class DeviceRules:
    """One row's ``Rules`` as tensors on the device.

    allowed     bool [V] or None
    last        int64 [W], the last token of each bad word
    before      int32 [W, L], what must stand before it, aligned to the right; -1: anything
    stop_ids, bias_ids int64, bias_values float32
    """

    allowed: Tensor | None
    last: Tensor
    before: Tensor
    stop_ids: Tensor
    bias_ids: Tensor
    bias_values: Tensor

    @classmethod
    def of(cls, rules: Rules, vocab: int, device: torch.device) -> DeviceRules:
        words = rules.bad_words
        width = max((len(word) - 1 for word in words), default=0)
        before = np.full((len(words), width), -1, np.int32)
        for i, word in enumerate(words):
            before[i, width - len(word) + 1 :] = word[:-1]
        allowed = None
        if rules.allowed is not None:
            mask = np.zeros(vocab, bool)
            mask[rules.allowed] = True
            allowed = torch.from_numpy(mask).to(device)
        return cls(
            allowed=allowed,
            last=torch.tensor([word[-1] for word in words], dtype=torch.int64, device=device),
            before=torch.from_numpy(before).to(device),
            stop_ids=torch.from_numpy(rules.stop_ids).to(device),
            bias_ids=torch.from_numpy(rules.bias_ids).to(device),
            bias_values=torch.from_numpy(rules.bias_values).to(device),
        )

    def banned(self, output: Tensor) -> Tensor:
        """Which of ``last`` would complete their bad word after ``output`` int32 [n]: bool [W]."""
        width = self.before.shape[1]
        recent = output[max(0, len(output) - width) :]
        if len(recent) < width:  # a word that needs more than there is never matches: -2 stands in no word
            recent = torch.cat([recent.new_full((width - len(recent),), -2), recent])
        return ((self.before == recent) | (self.before == -1)).all(1)


class RowRules:
    """The device's copies of the rules of all rows, made when they are first needed."""

    def __init__(self, sampler: SamplerState, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self._made: dict[int, tuple[Rules, DeviceRules]] = {}

    def of(self, row: int) -> DeviceRules:
        rules = self._sampler.rules[row]
        assert rules is not None, f"row {row} was never started"
        made = self._made.get(row)
        if made is None or made[0] is not rules:
            made = self._made[row] = rules, DeviceRules.of(rules, self._sampler.vocab_size, self._device)
        return made[1]

    def apply(
        self,
        logits: Tensor,
        rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        tokens: Tensor,
        masks: Mapping[int, Any],
    ) -> Tensor:
        """Scores float32 [R, V] for the raw ``logits``; these themselves if no row has rules. Arguments as for
        ``sample``, with rows and lengths on the host."""
        sampler = self._sampler
        generated = lengths - sampler.prompt_len[rows]
        ruled = sampler.lasting[rows] | (generated < sampler.min_tokens[rows])
        ruled[list(masks)] = True
        if not ruled.any():
            return logits
        scores = logits.float() if logits.dtype != torch.float32 else logits.clone()
        for r in np.flatnonzero(ruled).tolist():
            row, length = int(rows[r]), int(lengths[r])
            rules, host = self.of(row), sampler.rules[row]
            assert host is not None
            keep = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            if r in masks:
                mask = torch.as_tensor(masks[r], device=scores.device)
                keep = _restrict(keep, torch.nn.functional.pad(mask, (0, len(keep) - len(mask))))
            if rules.allowed is not None:
                keep = _restrict(keep, rules.allowed)
            if host.bad_words:
                hits = rules.banned(tokens[row, int(sampler.prompt_len[row]) : length])
                counts = torch.zeros(len(keep), dtype=torch.int32, device=keep.device)
                keep = _restrict(keep, counts.index_add_(0, rules.last, hits.int()) == 0)
            if generated[r] < sampler.min_tokens[row]:
                keep = _restrict(keep, keep.index_fill(0, rules.stop_ids, False))
            scores[r].masked_fill_(~keep, -torch.inf)
            if len(host.bias_ids):
                scores[r].index_add_(0, rules.bias_ids, rules.bias_values)
        return scores


def _restrict(keep: Tensor, mask: Tensor) -> Tensor:
    """keep & mask, or ``keep`` where that would leave nothing."""
    both = keep & mask
    return torch.where(both.any(), both, keep)
