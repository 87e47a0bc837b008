"""A runner around a data plane's runner, which checks a share of the steps with the reference.

The plane itself runs as ever: the same launches, the same graphs, the same tokens. Of a step that is to be verified the
launched tensors are kept until its tokens are there, then everything is looked at in the order in which it happened:
inputs, ops, hidden states, logits, choice; and, if all of that is well, what earlier steps have left in the cache. Such
a step is slow, and with run-ahead the next one waits for it; the others cost nothing but the bookkeeping of block
tables.

Which steps are verified is a hash of the step's number, so that a run's steps are the same ones each time, and no
pattern in the traffic hides from them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control.block_tables import BlockTables
from quire.reference.control.philox import derive_seed
from quire.reference.control.plan import NewSeq, Pending, StepPlan, StepResult
from quire.reference.models import Model
from quire.reference.ops import AttnMeta
from quire.reference.sampling import SamplerState
from quire.verify.choice import wrong_choices
from quire.verify.compare import REPEATED, TOLERANCE, Check, Difference, differences, row_errors
from quire.verify.inputs import wrong_inputs
from quire.verify.lockstep import Lockstep, shapes_of, weight_names
from quire.verify.past import wrong_past

logger = logging.getLogger("quire.verify")
Ints = npt.NDArray[np.int64]

SCORES = 1 << 22  # logits of a step that are looked at: the reference draws their noise on the host, 0.1 µs each


class Runner(Protocol):
    """What both data planes' runners show. ``launched`` is the step between its ``forward`` and its ``sample``."""

    model: Model
    block_size: int
    caches: list[tuple[Tensor, Tensor]]

    @property
    def launched(self) -> Any: ...
    @property
    def sampler(self) -> SamplerState: ...
    @property
    def tokens(self) -> Any: ...
    def forward(self, plan: StepPlan) -> None: ...
    def sample(self, masks: Any = None) -> Pending: ...


@dataclass(frozen=True)
class Divergence:
    """A verified step that differs, with what is needed to run it again.

    runner        the plane's, as the step left it
    differences   in the order in which they came up; the first one names the culprit
    tables        row -> its blocks
    started       row -> how its sequence began (of a fork: as if it had been a request of its own)
    hidden        hidden states as the plane computed them [R, H]
    hidden_rows   which of the step's tokens they are of, int64 [R]
    ids           the step's tokens [T]: of drafts that were rejected nothing is left in the rows
    """

    runner: Runner
    plan: StepPlan
    masks: Mapping[int, Any]
    differences: list[Difference]
    tables: dict[int, list[int]]
    started: dict[int, NewSeq]
    hidden: Tensor
    hidden_rows: npt.NDArray[np.int64]
    ids: Tensor

    def sequence_of(self, difference: Difference) -> int:
        """The index in ``plan.seqs`` of the sequence in which a difference is greatest."""
        ends = np.cumsum([s.n for s in self.plan.seqs])
        return int(np.searchsorted(ends, difference.row, side="right"))


@dataclass(frozen=True)
class Choices:
    """The tokens that a step chose, one after the other: accepted drafts, which were chosen too, and those behind them.

    seq     the sequence, as an index in plan.seqs; place: which of its choices it is
    row     the row; length: the tokens before it
    token   which of the step's tokens it was chosen behind
    got     the chosen token
    """

    seq: Ints
    place: Ints
    row: Ints
    length: Ints
    token: Ints
    got: Ints

    @classmethod
    def of(cls, plan: StepPlan, result: StepResult, which: list[int]) -> Choices:
        ends = np.cumsum([s.n for s in plan.seqs]).tolist()
        fields = [
            (i, place, s.row, s.start + s.n - s.n_draft + place, ends[i] - 1 - s.n_draft + place, token)
            for i in which
            for s in (plan.seqs[i],)
            for place, token in enumerate(result.tokens[i])
        ]
        return cls(*np.array(fields, np.int64).reshape(-1, 6).T)


def chosen(step: int, share: float) -> bool:
    """Whether step number ``step`` belongs to the share."""
    return derive_seed(0, step) < share * 2**64


class VerifiedRunner:
    """The runner that the engine drives in place of ``runner``, whose KV cache is allocated.

    share           of the steps that are verified, 0 to 1
    on_divergence   is told of each verified step that differs
    pasts           sequences of such a step whose earlier K/V is computed anew

    ``steps`` and ``divergences`` count both.
    """

    def __init__(
        self, runner: Runner, *, share: float, on_divergence: Callable[[Divergence], None], pasts: int = 1
    ) -> None:
        self.runner, self.share, self.pasts = runner, share, pasts
        self.steps = self.divergences = 0
        self._on_divergence = on_divergence
        self._tables = BlockTables(runner.block_size)
        self._started: dict[int, NewSeq] = {}
        self._launched: Any = None
        self._before: Pending | None = None
        self._names = weight_names(runner.model)

    def forward(self, plan: StepPlan) -> None:
        self._follow(plan)
        self.runner.forward(plan)
        self._launched = self.runner.launched if plan.seqs and chosen(plan.step, self.share) else None

    def sample(self, masks: Mapping[int, Any] | None = None) -> Pending:
        pending = self.runner.sample(masks)
        launched, self._launched = self._launched, None
        before, self._before = self._before, pending
        if launched is not None:
            if before is not None:
                before.wait()  # results come in the order of their steps: some runners draft when they do
            result = pending.wait()
            self._synchronize()  # the plane works on a stream of its own
            try:
                self._verify(launched, result, masks or {})
            except Exception:  # such as a lack of memory: whoever watches the work must not stop it
                logger.exception("step %d could not be verified", launched.plan.step)
            finally:
                self._synchronize()  # and may overwrite everything from here on
        return pending

    def _follow(self, plan: StepPlan) -> None:
        """What later steps must know of this one, verified or not."""
        self._tables.apply(plan)
        for row in plan.ends:
            self._started.pop(row, None)
        for new in plan.starts:
            self._started[new.row] = new
        for fork in plan.forks:
            parent = self._started[fork.parent_row]
            self._started[fork.row] = replace(
                parent, row=fork.row, seq_id=fork.seq_id, stream=fork.stream, params=fork.params
            )

    @torch.inference_mode()
    def _verify(self, step: Any, result: StepResult, masks: Mapping[int, Any]) -> None:
        runner, plan = self.runner, step.plan
        found = wrong_inputs(plan, self._tables.rows, runner.block_size, step.inputs, runner.tokens, result.accepted)
        if not found:  # else the ops might look for keys outside the cache
            checks = self._forward_checks(step)
            looked_at = self._looked_at(plan, result)
            lockstep = Lockstep(runner.model.ops, self._names, looked_at.token, stage="logits: ")
            some = len(looked_at.token) > 0
            logits = self._twin(lockstep).logits(self._hidden(step, looked_at.token)) if some else None
            found = differences(checks + lockstep.checks)
            if logits is not None:
                found += self._wrong_choices(looked_at, logits, masks)
            found = found or self._wrong_pasts(step)  # wrong ops would leave a wrong past
        self.steps += 1
        if found:
            self.divergences += 1
            tables, started, rows = self._tables.rows, self._started, step.hidden_rows
            hidden = step.hidden[: len(rows)]
            ids = step.inputs.ids[: plan.num_tokens]
            self._on_divergence(Divergence(runner, plan, masks, found, tables, started, hidden, rows, ids))

    def _forward_checks(self, step: Any) -> list[Check]:
        """The step's forward pass in lockstep, and its outcome against the one that was launched."""
        inputs, rows = step.inputs, step.hidden_rows
        meta = inputs.meta
        # Each plane derives what it needs from metadata of its own.
        reference_meta = AttnMeta(meta.cu_q, meta.seq_len, meta.block_table, meta.slot)
        tokens = np.arange(step.plan.num_tokens)
        lockstep = Lockstep(self.runner.model.ops, self._names, tokens, reference_meta, wanted=rows)
        own_meta = replace(meta, derived={})
        hidden = self._twin(lockstep).forward(inputs.ids, inputs.positions, self.runner.caches, own_meta, step.wanted)
        errors = row_errors(step.hidden[: len(rows)], hidden[: len(rows)])
        tolerance = REPEATED * TOLERANCE[hidden.dtype]
        return [*lockstep.checks, Check("hidden states", shapes_of([], hidden), tolerance, errors, rows)]

    def _looked_at(self, plan: StepPlan, result: StepResult) -> Choices:
        """The choices whose logits are looked at: those of all sequences that sample, or of some of them in turn."""
        which = [i for i, s in enumerate(plan.seqs) if result.tokens[i]]
        most = max(1, SCORES // self.runner.model.config.vocab_size // (1 + max(s.n_draft for s in plan.seqs)))
        if len(which) > most:
            first = plan.step * most % len(which)
            which = sorted((which + which)[first : first + most])
        return Choices.of(plan, result, which)

    def _wrong_choices(self, choices: Choices, logits: Tensor, masks: Mapping[int, Any]) -> list[Difference]:
        """Those that are not what the reference chooses by ``logits``, or got lost."""
        rows, lengths, got = choices.row, choices.length, choices.got
        tokens = torch.as_tensor(self.runner.tokens)
        kept = tokens[torch.from_numpy(rows).to(tokens.device), : int(lengths.max()) + 1].cpu().numpy()
        history = np.zeros((int(rows.max()) + 1, kept.shape[1]), kept.dtype)
        history[rows] = kept
        by_position = {}
        for k, (i, place) in enumerate(zip(choices.seq.tolist(), choices.place.tolist())):
            if i in masks:
                by_position[k] = masks[i] if masks[i].ndim == 1 else masks[i][place]
        wrong = wrong_choices(logits, got, self.runner.sampler, rows, lengths, history, by_position)
        problem = "the token's score is {:.2g} behind the best, allowed {:.2g}"
        at = choices.token.tolist()
        found = [Difference("sample", problem.format(*wrong[i]), at[i]) for i in sorted(wrong)]
        lost = np.flatnonzero(history[rows, lengths] != got)
        return found + [Difference("sample", "the chosen token is not in its row", at[i]) for i in lost]

    def _wrong_pasts(self, step: Any) -> list[Difference]:
        """The earlier K/V of some of the step's sequences, one after the other in turn."""
        seqs, runner = step.plan.seqs, self.runner
        tokens = torch.as_tensor(runner.tokens)
        found = []
        for k in range(min(self.pasts, len(seqs))):
            i = (step.plan.step + k) % len(seqs)
            token_ids = tokens[seqs[i].row, : seqs[i].start].to(runner.caches[0][0].device)
            blocks = self._tables.rows[seqs[i].row]
            found += wrong_past(runner.model, runner.caches, blocks, token_ids, int(step.cu_q[i]))
        return found

    def _twin(self, lockstep: Lockstep) -> Any:
        """The model, weights and all, with other ops."""
        twin: Any = copy.copy(self.runner.model)
        twin.ops = lockstep
        return twin

    def _hidden(self, step: Any, tokens: Ints) -> Tensor:
        """The hidden states of these of the step's tokens."""
        at = np.searchsorted(step.hidden_rows, tokens)
        return step.hidden[torch.from_numpy(at).to(step.hidden.device)]

    def _synchronize(self) -> None:
        if self.runner.caches[0][0].is_cuda:
            torch.cuda.synchronize(self.runner.caches[0][0].device)
