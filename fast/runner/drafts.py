"""Where drafts come from: the interface, and proposers that look them up on the host.

A runner shows its drafter every plan before the step, and asks it once the step's sampling is launched. What a lookup
needs are the tokens, and these are on the device. So it works when they arrive, which the engine waits for anyway
before it plans a sequence's drafts, from a copy of the rows that is kept here; its drafts travel to the rows with the
inputs of the step that verifies them. (A draft model needs no such thing, draft_model.py, nor what looks at nothing but
a sequence's own tokens, lookup.py.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.sampling import SamplerState
from quire.reference.speculation.proposer import Proposer, View

Ints = npt.NDArray[np.int64]


class Drafter(Protocol):
    """What a runner needs of whoever drafts."""

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """The runner's KV cache has so many blocks now."""

    def follow(self, plan: StepPlan) -> list[list[int]]:
        """A plan is about to be applied -> for each of its sequences with drafts these, if they are not in the rows."""

    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        """The plan's sampling is launched: launch the drafting for who wants it -> to be called with the result."""


class HostDrafts:
    """Asks ``proposer``, which looks at tokens only.

    tokens, row_len   the rows, as far as their tokens have arrived
    turns             counts what has lived in each row: what arrives may be of a sequence that is gone
    offered           by row, the drafts of the latest step
    """

    def __init__(self, proposer: Proposer, sampler: SamplerState, max_model_len: int) -> None:
        num_rows = len(sampler.rules)
        self.proposer, self.sampler = proposer, sampler
        self.tokens = np.zeros((num_rows, max_model_len + 1), np.int32)
        self.row_len = np.zeros(num_rows, np.int64)
        self.turns = np.zeros(num_rows, np.int64)
        self.offered: dict[int, list[int]] = {}

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        self.proposer.allocate_kv(num_blocks, num_host_blocks)

    def follow(self, plan: StepPlan) -> list[list[int]]:
        self.proposer.follow(plan, self.tokens, self.row_len)
        for new in plan.starts:
            self.tokens[new.row, : len(new.token_ids)] = new.token_ids
            self.row_len[new.row] = len(new.token_ids)
            self.turns[new.row] += 1
        for fork in plan.forks:
            self.tokens[fork.row, : fork.length] = self.tokens[fork.parent_row, : fork.length]
            if fork.token is not None:
                self.tokens[fork.row, fork.length] = fork.token
            self.row_len[fork.row] = fork.length + (fork.token is not None)
            self.turns[fork.row] += 1
        return [self.offered[s.row][: s.n_draft] for s in plan.seqs if s.n_draft]

    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        return partial(self._arrived, plan, self.turns[[s.row for s in plan.seqs]])

    def _arrived(self, plan: StepPlan, turns: Ints, result: StepResult) -> None:
        """Take in the tokens, and offer drafts where the plan asks for some."""
        asked = []
        for i, s in enumerate(plan.seqs):
            if s.samples and self.turns[s.row] == turns[i]:
                length, tokens = s.start + s.n - s.n_draft, result.tokens[i]
                self.tokens[s.row, length : length + len(tokens)] = tokens
                self.row_len[s.row] = length + len(tokens)
                if s.propose:
                    asked.append(i)
        if not asked:
            return
        rows, want = np.array([(plan.seqs[i].row, plan.seqs[i].propose) for i in asked], np.int64).T
        no_blocks = np.zeros((0, 0), np.int64)  # they are on the device, and nothing for a lookup
        drafts = self.proposer.propose(View(rows, self.row_len[rows], want, self.tokens, no_blocks, self.sampler))
        for i, row, draft in zip(asked, rows.tolist(), drafts):
            if draft.token_ids:
                self.offered[row] = result.drafts[i] = draft.token_ids
