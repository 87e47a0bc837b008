"""The reference data plane: executes a ``StepPlan`` on a model, eagerly and in one thread.

The runner keeps everything that lasts from step to step, one *row* per sequence: its tokens, its block table, its
sampling parameters. A plan only says what changes. Inputs of a decode come from the runner's own rows, where the
previous step put them, so the scheduler may hand over the plan of step n+1 before it has looked at the tokens of step
n (run-ahead); this runner is then simply done earlier.

    runner = ModelRunner(model, max_num_seqs=256, max_model_len=2048, block_size=16, device="cpu", dtype=torch.float32)
    runner.allocate_kv(num_blocks, num_host_blocks)
    runner.forward(plan); result = runner.sample().wait()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control.params import PoolingParams
from quire.reference.control.plan import Fork, Logprobs, NewSeq, StepPlan, StepResult
from quire.reference.inputs import Inputs, ragged_inputs, to_device
from quire.reference.kv_cache import Caches, allocate, allocate_host, swap_blocks
from quire.reference.models import Model
from quire.reference.ops.cache import copy_blocks
from quire.reference.pooling import PooledRow
from quire.reference.sampling import Positions, SamplerState, reject, sample, top_logprobs, verify
from quire.reference.speculation.proposer import Draft, Proposer, View

Ints = npt.NDArray[np.int64]
PROMPT_LOGITS = 1 << 24  # logits of prompt positions computed at once, in numbers: 64 MiB


@dataclass(frozen=True)
class Done:
    """A step that needs no waiting: the reference computes it before ``sample`` returns."""

    result: StepResult

    def wait(self) -> StepResult:
        return self.result


@dataclass
class Launched:
    """A forward pass that has not been sampled yet: plan.seqs as arrays [S], query offsets [S+1], hidden [T, H].

    ``end`` is behind the last position computed, drafts included.
    """

    plan: StepPlan
    rows: Ints
    start: Ints
    end: Ints
    cu_q: Ints
    inputs: Inputs | None = None
    hidden: Tensor | None = None
    wanted: None = None  # this runner asks for the hidden states of all tokens

    @property
    def hidden_rows(self) -> Ints:
        """Which of the step's tokens the rows of ``hidden`` are."""
        return np.arange(self.cu_q[-1])


class ModelRunner:
    """Rows, KV cache and sampler around one model.

    max_num_seqs     number of rows
    max_model_len    longest sequence, prompt and output
    device, dtype    where the model is and the KV cache shall be, and the cache's dtype
    proposer         where drafts come from, for plans that ask for some
    rejection        verify them by rejection sampling instead of shared noise
    """

    def __init__(
        self,
        model: Model,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        proposer: Proposer | None = None,
        rejection: bool = False,
    ) -> None:
        self.model = model
        self.proposer = proposer
        self.rejection = rejection
        self.block_size = block_size
        self.device = torch.device(device)
        self.dtype = dtype
        # One column more than max_model_len: the token after a full context is sampled before anybody stops it.
        self.tokens = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.row_len = np.zeros(max_num_seqs, np.int64)
        self.block_table = np.zeros((max_num_seqs, -(-(max_model_len + 1) // block_size)), np.int64)
        self.num_row_blocks = np.zeros(max_num_seqs, np.int64)
        self.sampler = SamplerState(max_num_seqs, model.config.vocab_size)
        self.drafts: dict[int, Draft] = {}  # by row: offered by the latest step
        self.pooled: dict[int, PooledRow] = {}  # by row; these do not sample, the sampler knows nothing of them
        self.caches: Caches = []
        self.host_caches: Caches = []
        self._launched: Launched | None = None

    def allocate_kv(self, num_blocks: int, num_host_blocks: int = 0) -> None:
        """Allocate the KV cache: per layer K and V [num_blocks, block_size, kv_heads, head_dim], and the swap space.

        ``num_blocks`` counts the null block 0. The control plane numbers host blocks from 1 as well, so there is one
        more of them than can be used. The memory is not cleared; nothing reads a slot before it was written.
        """
        config, size, dtype = self.model.config, self.block_size, self.dtype
        self.caches = allocate(config, num_blocks, size, dtype, self.device)
        self.host_caches = allocate_host(config, num_host_blocks, size, dtype, self.device.type == "cuda")
        if self.proposer is not None:
            self.proposer.allocate_kv(num_blocks, num_host_blocks)

    # ------------------------------------------------------------------------------------------------ forward

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Apply the plan's changes and compute the hidden states of its tokens."""
        assert self._launched is None, "the previous forward pass has not been sampled"
        self._apply(plan)
        if not plan.seqs:
            empty = np.zeros(0, np.int64)
            self._launched = Launched(plan, empty, empty, empty, np.zeros(1, np.int64))
            return
        rows, start, n, n_draft = np.array([(s.row, s.start, s.n, s.n_draft) for s in plan.seqs], np.int64).T
        end = start + n
        assert (end - n_draft <= self.row_len[rows]).all(), "the plan computes tokens that the rows do not have"
        assert (end <= self.num_row_blocks[rows] * self.block_size).all(), "the plan's rows lack blocks"
        unwritten = [i for i, s in enumerate(plan.seqs) if not s.write]
        inputs, cu_q = ragged_inputs(
            rows, start, end, self.tokens, self.block_table, self.block_size, self.device, unwritten
        )
        hidden = self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.meta)
        self._launched = Launched(plan, rows, start, end, cu_q, inputs, hidden)

    @property
    def launched(self) -> Launched | None:
        """The step between its ``forward`` and its ``sample``, for whoever checks on it (shadow verification)."""
        return self._launched

    def _tensor(self, array: Ints) -> Tensor:
        return to_device(array, self.device)

    def _apply(self, plan: StepPlan) -> None:
        """Everything before the forward pass, in the documented order."""
        if self.proposer is not None:
            self.proposer.follow(plan, self.tokens, self.row_len)
        for row in plan.ends:
            self.num_row_blocks[row] = 0
            self.pooled.pop(row, None)
            self.drafts.pop(row, None)
        for new in plan.starts:
            self._start(new)
        for fork in plan.forks:
            self._fork(fork)
        if plan.swap_out:
            swap_blocks(self.caches, self.host_caches, plan.swap_out, out=True)
        if plan.copies:
            src, dst, row, entry = np.array(plan.copies, np.int64).T
            copy_blocks(self.caches, self._tensor(src), self._tensor(dst))
            self.block_table[row, entry] = dst
        if plan.swap_in:
            swap_blocks(self.caches, self.host_caches, plan.swap_in, out=False)
        for s in plan.seqs:
            if s.n_draft:
                length, drafts = self.row_len[s.row], self.drafts[s.row].token_ids
                assert length == s.start + s.n - s.n_draft and len(drafts) >= s.n_draft, "no such drafts were offered"
                self.tokens[s.row, length : length + s.n_draft] = drafts[: s.n_draft]
            if s.new_blocks:  # what stands behind ``start`` was reserved for drafts that were rejected
                have = min(int(self.num_row_blocks[s.row]), -(-s.start // self.block_size))
                self.block_table[s.row, have : have + len(s.new_blocks)] = s.new_blocks
                self.num_row_blocks[s.row] = have + len(s.new_blocks)

    def _start(self, new: NewSeq) -> None:
        self.tokens[new.row, : len(new.token_ids)] = new.token_ids
        self.row_len[new.row] = len(new.token_ids)
        self.num_row_blocks[new.row] = 0
        if isinstance(new.params, PoolingParams):
            self.pooled[new.row] = PooledRow(new.params)
            return
        self.sampler.start(
            new.row,
            new.params,
            prompt_len=new.prompt_len,
            seed=new.seed,
            stream=new.stream,
            stop_ids=new.stop_ids,
        )

    def _fork(self, fork: Fork) -> None:
        row, parent, length = fork.row, fork.parent_row, fork.length
        if row != parent:
            blocks = -(-length // self.block_size)
            self.tokens[row, :length] = self.tokens[parent, :length]
            self.block_table[row, :blocks] = self.block_table[parent, :blocks]
            self.num_row_blocks[row] = blocks
        if fork.token is not None:
            self.tokens[row, length] = fork.token
        self.row_len[row] = length + (fork.token is not None)
        self.sampler.fork(row, parent, fork.params, fork.stream)

    # ------------------------------------------------------------------------------------------------- sample

    @torch.inference_mode()
    def sample(self, masks: Mapping[int, Any] | None = None) -> Done:
        """Choose the tokens of the forward pass that was launched last, and append them to their rows; pool embeddings.

        masks: index in plan.seqs -> bool [V] (NumPy or torch), True = allowed; for positions that are sampled.
        """
        launched, self._launched = self._launched, None
        assert launched is not None, "sample() follows a forward()"
        plan, rows = launched.plan, launched.rows
        result = StepResult(plan.step, [[] for _ in plan.seqs])
        which = [i for i, s in enumerate(plan.seqs) if s.samples]
        if masks and not masks.keys() <= set(which):
            raise ValueError(f"masks for {sorted(masks.keys() - set(which))}: these plan.seqs sample no token")
        if which:
            self._sample(launched, which, masks or {}, result)
        for i in np.flatnonzero(self.sampler.prompt_logprobs[rows] >= 0).tolist():
            if rows[i] not in self.pooled and launched.start[i] + 1 < self.sampler.prompt_len[rows[i]]:
                result.prompt_logprobs[i] = self._prompt_logprobs(launched, i)
        if self.pooled:
            self._pool(launched, result)
        return Done(result)

    def _pool(self, launched: Launched, result: StepResult) -> None:
        """Take in the hidden states of the rows that pool, and report the embeddings that are due."""
        for i, s in enumerate(launched.plan.seqs):
            if s.row in self.pooled:
                assert launched.hidden is not None
                pooled = self.pooled[s.row]
                pooled.add(launched.hidden[launched.cu_q[i] : launched.cu_q[i + 1]])
                if s.pools:
                    result.pooled[i] = pooled.embedding().cpu().numpy().astype("<f4").tobytes()

    def _sample(self, launched: Launched, which: list[int], masks: Mapping[int, Any], result: StepResult) -> None:
        assert launched.hidden is not None
        rows = launched.rows[which]
        n_draft = np.array([launched.plan.seqs[i].n_draft for i in which], np.int64)
        lengths = launched.end[which] - n_draft
        assert (lengths == self.row_len[rows]).all(), "only a row's last token and its drafts are sampled from"
        # Each sequence's last token and its drafts, counted in the step.
        at = Positions.of(rows, launched.cu_q[1:][which] - 1 - n_draft, n_draft)
        logits = self.model.logits(launched.hidden[self._tensor(at.length)]).float()
        in_batch = {k: masks[i] for k, i in enumerate(which) if i in masks}
        if n_draft.any():
            if self.rejection:
                probs = [self.drafts[row].probs if n else None for row, n in zip(rows.tolist(), n_draft)]
                gained, accepted = reject(logits, self.sampler, rows, lengths, self.tokens, n_draft, probs, in_batch)
            else:
                gained, accepted = verify(logits, self.sampler, rows, lengths, self.tokens, n_draft, in_batch)
            result.accepted = {i: count for i, n, count in zip(which, n_draft, accepted) if n}
        else:
            chosen = sample(logits, self.sampler, rows, lengths, self.tokens, in_batch)
            gained = [[token] for token in chosen.tolist()]
        for i, row, length, own in zip(which, rows, lengths, gained):
            self.tokens[row, length : length + len(own)] = own
            self.row_len[row] = length + len(own)
            result.tokens[i] = own
        asked = np.flatnonzero(self.sampler.logprobs[rows] >= 0).tolist()
        if asked:
            counts = {k: int(self.sampler.logprobs[rows[k]]) for k in asked}
            raw = logits[[at.first[k] + j for k in asked for j in range(len(gained[k]))]]
            stands = torch.tensor([token for k in asked for token in gained[k]], device=self.device)
            entries = iter(top_logprobs(raw, stands, [counts[k] for k in asked for _ in gained[k]]))
            result.logprobs = {which[k]: [next(entries) for _ in gained[k]] for k in asked}
        self._propose(launched, which, result)

    def _propose(self, launched: Launched, which: list[int], result: StepResult) -> None:
        """Ask for drafts where the plan does; they stay here for the next plan to take up, or not."""
        for row in launched.rows[which].tolist():
            self.drafts.pop(row, None)
        asked = [i for i in which if launched.plan.seqs[i].propose]
        if not asked:
            return
        assert self.proposer is not None, "the plan asks for drafts, and there is no proposer"
        rows = launched.rows[asked]
        want = np.array([launched.plan.seqs[i].propose for i in asked], np.int64)
        view = View(rows, self.row_len[rows], want, self.tokens, self.block_table, self.sampler)
        for i, row, draft in zip(asked, rows.tolist(), self.proposer.propose(view)):
            if draft.token_ids:
                self.drafts[row] = draft
                result.drafts[i] = draft.token_ids

    def _prompt_logprobs(self, launched: Launched, i: int) -> tuple[int, list[Logprobs]]:
        """Entries for the prompt positions that plan.seqs[i] made known: the logits of p are about token p + 1."""
        assert launched.hidden is not None
        row, first = launched.rows[i], int(launched.start[i]) + 1
        last = min(int(launched.end[i]), int(self.sampler.prompt_len[row]) - 1)  # inclusive
        targets = self._tensor(self.tokens[row, first : last + 1].astype(np.int64))
        hidden = launched.hidden[launched.cu_q[i] : launched.cu_q[i] + len(targets)]
        count = int(self.sampler.prompt_logprobs[row])
        piece = max(1, PROMPT_LOGITS // self.sampler.vocab_size)
        entries: list[Logprobs] = []
        for h, t in zip(hidden.split(piece), targets.split(piece)):
            entries += top_logprobs(self.model.logits(h), t, [count] * len(t))
        return first, entries
