"""The fast data plane: executes a ``StepPlan`` on a GPU, launch by launch, and never waits for what it launched.

The same plans, rows and order of things as in ``quire.reference.runner``. But ``forward`` and ``sample`` return as soon
as everything is launched; the tokens stay on the device, in their rows, where the next step finds them, and a copy goes
to the host. So the engine may launch step n+1 while step n runs, and planning, bookkeeping and answering cost no time
of the GPU's.

A step in which every sequence computes its last token, and perhaps drafts behind it, and samples is a *decode step* and
replays a graph (graphs.py). All others (prompt chunks, mixed with decodes) are launched kernel by kernel: they are long
enough to hide that.

Drafts are verified as a sequence's further queries in one step: the target chooses at each of their positions, and what
agrees is kept (``quire.fast.sampling.verification``). Where drafts come from is another file's matter (drafts.py,
draft_model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.fast.ops import copy_blocks
from quire.fast.runner.draft_model import DraftModel
from quire.fast.runner.drafts import Drafter, HostDrafts
from quire.fast.runner.graphs import EXACT, Graphs, coarse, doubling, ladder, smallest
from quire.fast.runner.inputs import AHEAD, Inputs, build_inputs
from quire.fast.runner.launched import Launched, looked_up
from quire.fast.runner.lookup import Lookup
from quire.fast.runner.memory import measure_activations
from quire.fast.runner.results import Assembly, Fetcher, Pending
from quire.fast.runner.rows import Rows, Run
from quire.fast.runner.rules import RowRules
from quire.fast.runner.sampling import Places, Wants, choose, choose_by_rejection
from quire.fast.runner.swap import Caches, SwapSpace, allocate
from quire.fast.runner.upload import Upload, aligned
from quire.reference.control.plan import SeqPlan, StepPlan, Swap
from quire.reference.models import Model
from quire.reference.sampling import Positions, SamplerState, rank_tokens
from quire.reference.sampling.verification import spread_masks
from quire.reference.speculation.ngram import NGram
from quire.reference.speculation.proposer import Proposer

Ints = npt.NDArray[np.int64]
PROMPT_LOGITS = 1 << 26  # logits of prompt positions computed at once, in numbers
MANY = 128  # queries of one sequence, as far as kernels of steps with prompts are told: they are the same for fewer


class ModelRunner:
    """Rows, KV cache and sampler around one model whose ops are ``quire.fast.ops`` (or its ``invariant`` twin).

    max_num_seqs     number of rows
    max_model_len    longest sequence, prompt and output
    device, dtype    where the model is and the KV cache shall be, and the cache's dtype
    enforce_eager    use no graphs
    most_drafts      drafts per sequence and step, at most
    proposer         where they come from: something that looks them up on the host
    draft_model      or a model with the target's vocabulary, on the same device and with the same ops
    rejection        verify them by rejection sampling instead of shared noise
    """

    def __init__(
        self,
        model: Model,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        enforce_eager: bool = False,
        most_drafts: int = 0,
        proposer: Proposer | None = None,
        draft_model: Model | None = None,
        rejection: bool = False,
    ) -> None:
        self.model, self.dtype, self.rejection = model, dtype, rejection
        self.block_size = block_size
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._upload = Upload(self.device)
        self._fetcher = Fetcher(self.device)
        self.rows = Rows(max_num_seqs, max_model_len, block_size, model.config.vocab_size, self._upload)
        self._rules = RowRules(self.rows.sampler, self.device)
        self._graphs = Graphs(on_gpu and not enforce_eager)
        self._ladder = ladder(max_num_seqs)
        self._most_tokens = max_num_seqs * (1 + most_drafts)  # of a decode step
        # With drafts: fewer sizes of the batch, since they come with as many numbers of tokens.
        self._sizes, self._tokens = doubling(max_num_seqs), coarse(self._most_tokens)
        self._longest = 1 << most_drafts.bit_length()  # of decode steps with drafts, whose kernels depend on it
        room = 5 * aligned(max_num_seqs + 1) + aligned(self._most_tokens)
        self._decode_inputs = torch.zeros(room, dtype=torch.int32, device=self.device)
        # What a decode step chose, until it is fetched. Not in the graphs' pool: there the next forward pass may put
        # its temporaries, and it does not wait for the fetching.
        self._chosen = torch.zeros(self._most_tokens, dtype=torch.int64, device=self.device)
        self._accepted = torch.zeros(max_num_seqs, dtype=torch.int32, device=self.device)
        self.proposer: Drafter | None = None
        if draft_model is not None:
            shared = self.rows, self._upload, self._fetcher, self._graphs
            self.proposer = DraftModel(draft_model, *shared, most=most_drafts, dtype=dtype, rejection=rejection)
        elif isinstance(proposer, NGram):
            self.proposer = Lookup(proposer, self.rows, self._upload, self._fetcher, most_drafts)
        elif proposer is not None:
            self.proposer = HostDrafts(proposer, self.rows.sampler, max_model_len)
        self.caches: Caches = []
        self._swap_space: SwapSpace | None = None
        self._launched: Launched | None = None
        if on_gpu:
            torch.cuda.synchronize(self.device)  # the tables were filled on another stream

    def measure_activations(self, max_num_batched_tokens: int) -> int | None:
        """Bytes that steps take besides weights and KV cache, measured; None if they do not fit.

        To be called before ``allocate_kv``, once; afterwards the device's memory is as it was.
        """
        if self._stream is None:
            return None
        try:
            with self._on_stream():
                sampled = min(max_num_batched_tokens, self._most_tokens)
                return measure_activations(self.model, self.rows, self.dtype, max_num_batched_tokens, sampled)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()

    def allocate_kv(self, num_blocks: int, num_host_blocks: int = 0) -> None:
        """Allocate the KV cache: per layer K and V [num_blocks, block_size, kv_heads, head_dim], and the swap space.

        ``num_blocks`` counts the null block 0, which padding reads: it is cleared, and nothing else is.
        """
        self.caches = allocate(self.model.config, num_blocks, self.block_size, self.dtype, self.device)
        self._swap_space = SwapSpace(self.caches, num_host_blocks) if num_host_blocks else None
        if self.proposer is not None:
            self.proposer.allocate_kv(num_blocks, num_host_blocks)
        if self._stream is not None:
            torch.cuda.synchronize(self.device)

    # What shadow verification looks at, by the names that the reference's runner has.

    @property
    def launched(self) -> Launched | None:
        """The step between its ``forward`` and its ``sample``. A later step may reuse its tensors."""
        return self._launched

    @property
    def sampler(self) -> SamplerState:
        return self.rows.sampler

    @property
    def tokens(self) -> Tensor:
        return self.rows.tokens

    # ------------------------------------------------------------------------------------------------ forward

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Launch the plan's changes and the forward pass."""
        assert self._launched is None, "the previous forward pass has not been sampled"
        with self._on_stream():
            new_block, drafts = self._apply(plan)
            if not plan.seqs:
                empty = np.zeros(0, np.int64)
                self._launched = Launched(plan, empty, empty, empty, empty, np.zeros(1, np.int32), [], empty)
                return
            fields = [(s.row, s.start, s.n, s.n_draft, s.write + AHEAD * s.ahead) for s in plan.seqs]
            rows, start, n, n_draft, writes = np.array(fields, np.int64).T
            cu_q = np.zeros(len(rows) + 1, np.int32)
            np.cumsum(n, out=cu_q[1:])
            which = [i for i, s in enumerate(plan.seqs) if s.samples]
            step = Launched(plan, rows, start, start + n, n_draft, cu_q, which, looked_up(drafts, n_draft, cu_q))
            seqs = np.stack([rows, start, writes, new_block]).astype(np.int32)
            if len(rows) == len(which) and (n == n_draft + 1).all():
                self._forward_decodes(step, seqs, int(n.max()))
            else:
                self._forward_mixed(step, seqs, int(n.max()))
            self._launched = step

    def _forward_decodes(self, step: Launched, seqs: npt.NDArray[np.int32], longest: int) -> None:
        count, drafted = len(step.rows), longest > 1
        size = smallest(self._sizes if drafted else self._ladder, count)
        tokens = smallest(self._tokens, int(step.cu_q[-1])) if drafted else size
        padded = np.zeros((5, aligned(size + 1)), np.int32)
        padded[0] = self.rows.padding
        padded[:4, :count] = seqs
        padded[4, : count + 1] = step.cu_q
        # Rows of padding have one token; if there are drafts none, for what is padded then is the number of tokens.
        padded[4, count + 1 :] = step.cu_q[-1] + (0 if drafted else 1 + np.arange(padded.shape[1] - count - 1))
        longest = max(longest, self._longest) if drafted else 1
        self._upload.send([padded, step.given], into=self._decode_inputs)
        step.graph = size, tokens, longest
        step.inputs, step.hidden, step.places = self._graphs.run(
            ("forward", *step.graph), partial(self._decode, *step.graph)
        )

    def _decode(self, size: int, tokens: int, longest: int) -> tuple[Inputs, Tensor, Places]:
        """The forward pass of a decode step, from what is in the input buffer."""
        fields = self._decode_inputs[: 5 * aligned(size + 1)].view(5, -1)
        (row, start, writes, new_block), cu_q = fields[:4, :size], fields[4, : size + 1]
        padded = longest > 1 and (size > 1 or tokens > EXACT)
        drafts_come_along = longest > 1 and isinstance(self.proposer, HostDrafts)
        given = self._decode_inputs[5 * aligned(size + 1) :][:tokens] if drafts_come_along else None
        inputs = build_inputs(
            self.rows, row, start, writes, new_block, cu_q, tokens, longest, padded=padded, given=given
        )
        hidden = self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.meta)  # type: ignore[arg-type]
        return inputs, hidden, Places(inputs.row, inputs.length, cu_q, longest)

    def _forward_mixed(self, step: Launched, seqs: npt.NDArray[np.int32], longest: int) -> None:
        drafts = step.n_draft[step.which]
        first = np.append(0, np.cumsum(drafts + 1))
        row, start, writes, new_block, cu_q, step.at, starts, given = self._upload.send(
            [*seqs, step.cu_q, step.sampled, first, step.given]
        )
        tokens, longest = int(step.cu_q[-1]), max(longest, MANY)
        step.inputs = build_inputs(
            self.rows, row, start, writes, new_block, cu_q, tokens, longest, given=given if len(given) else None
        )
        if not self.rows.pooled and not (self.rows.sampler.prompt_logprobs[step.rows] >= 0).any():
            step.wanted = step.at
        i = step.inputs
        where = i.row.index_select(0, step.at), i.length.index_select(0, step.at)
        step.places = Places(*where, starts, most=int(drafts.max(initial=0)) + 1)
        step.hidden = self.model.forward(i.ids, i.positions, self.caches, i.meta, step.wanted)  # type: ignore[arg-type]

    def _apply(self, plan: StepPlan) -> tuple[Ints, list[list[int]]]:
        """Everything before the forward pass, in the documented order. -> what its inputs will bring into the rows: the
        block that each of plan.seqs gained (other changes of block tables are made here), and drafts looked up."""
        rows = self.rows
        rows.start_and_fork(plan)
        drafts = [] if self.proposer is None else self.proposer.follow(plan)
        if plan.swap_out:
            assert self._swap_space is not None
            self._swap_space.move_out(plan.swap_out, self._device_blocks(plan.swap_out))
        if plan.copies:
            src, dst = self._upload.send([np.array(ids, np.int32) for ids in list(zip(*plan.copies))[:2]])
            copy_blocks(self.caches, src, dst)
        if plan.swap_in:
            assert self._swap_space is not None
            self._swap_space.move_in(plan.swap_in, self._device_blocks(plan.swap_in))
        runs: list[Run] = [(copy.row, copy.entry, [copy.dst]) for copy in plan.copies]
        gained = np.zeros(len(plan.seqs), np.int64)
        for i, s in enumerate(plan.seqs):
            if s.new_blocks:  # what stands behind ``start`` was reserved for drafts that were rejected
                have = min(int(rows.num_blocks[s.row]), -(-s.start // self.block_size))
                if len(s.new_blocks) == 1 and have == -(-s.start // self.block_size):
                    gained[i] = s.new_blocks[0]
                else:
                    runs.append((s.row, have, s.new_blocks))
                rows.num_blocks[s.row] = have + len(s.new_blocks)
        rows.replace_blocks(runs)
        return gained, drafts

    def _device_blocks(self, swaps: list[Swap]) -> Tensor:
        (at,) = self._upload.send([np.array([swap.device for swap in swaps], np.int32)])
        return at

    # ------------------------------------------------------------------------------------------------- sample

    @torch.inference_mode()
    def sample(self, masks: Mapping[int, Any] | None = None) -> Pending:
        """Launch the choice of the tokens of the last forward pass; their rows have them when the next one runs.

        masks: index in plan.seqs -> bool [V] (NumPy or torch), True = allowed; for positions that are sampled.
        """
        step, self._launched = self._launched, None
        assert step is not None, "sample() follows a forward()"
        masks = masks or {}
        if not masks.keys() <= set(step.which):
            raise ValueError(f"masks for {sorted(masks.keys() - set(step.which))}: these plan.seqs sample no token")
        sampler, which = self.rows.sampler, step.which
        with self._on_stream():
            tensors: list[Tensor] = []
            n_draft = step.n_draft[which]
            owner = np.repeat(step.rows[which], n_draft + 1)
            asked = np.flatnonzero(sampler.logprobs[owner] >= 0)
            counts = sampler.logprobs[owner[asked]].tolist()
            assembly = Assembly(step.plan, which, n_draft, n_draft + 1, asked, counts)
            if which:
                tensors += self._sample(step, masks, assembly)
            for i in np.flatnonzero(sampler.prompt_logprobs[step.rows] >= 0).tolist():
                row = step.rows[i]
                if row not in self.rows.pooled and step.start[i] + 1 < sampler.prompt_len[row]:
                    assembly.prompts.append(self._prompt_logprobs(step, i, tensors))
            if self.rows.pooled:
                for i, s in enumerate(step.plan.seqs):
                    if s.row in self.rows.pooled:
                        assembly.pooled += self._pool(step, i, s, tensors)
            pending = Pending(self._fetcher.fetch(tensors), assembly)
            if self.proposer is not None:
                pending.then = self.proposer.draft(step.plan)
            return pending

    def _sample(self, step: Launched, masks: Mapping[int, Any], assembly: Assembly) -> list[Tensor]:
        """-> the chosen tokens, how many drafts were accepted if there are any, and what is asked about the tokens."""
        assert step.hidden is not None and step.places is not None
        sampler, which, n_draft = self.rows.sampler, step.which, assembly.n_draft
        rows = step.rows[which]
        lengths = step.end[which] - n_draft
        wants = Wants.of(sampler, rows)
        ruled = sampler.lasting[rows] | (lengths - sampler.prompt_len[rows] < sampler.min_tokens[rows])
        sequences, positions = len(which), len(which) + int(n_draft.sum())
        rejection = self.rejection and bool(n_draft.any())
        if step.graph is not None and not (masks or ruled.any() or len(assembly.asked) or rejection):
            self._fetcher.before_overwriting()
            choose_all = partial(self._choose, step.hidden, step.places, wants)
            chosen, accepted = self._graphs.run(("sample", *step.graph, wants), choose_all)
            return [chosen[:positions], accepted[:sequences]] if n_draft.any() else [chosen[:positions]]
        hidden = step.hidden[:positions]
        if step.at is not None and step.wanted is None:
            hidden = step.hidden.index_select(0, step.at)
        logits = self.model.logits(hidden)
        at = Positions.of(rows, lengths, n_draft)
        in_batch = {k: masks[i] for k, i in enumerate(which) if i in masks}
        by_position, limits = spread_masks(in_batch, at.first, n_draft)
        assembly.limit = np.array(limits, np.int64)
        (limit,) = self._upload.send([assembly.limit]) if in_batch else (None,)
        scores = self._rules.apply(logits, at.row, at.length, self.rows.tokens, by_position)
        places = step.places.cut(sequences, positions)
        if rejection:
            probs: list[Tensor | None] = [None] * sequences
            if isinstance(self.proposer, DraftModel):
                probs = self.proposer.probs(rows)
            chosen, accepted = choose_by_rejection(scores, self.rows, places, wants, n_draft, probs, limit)
        else:
            chosen, accepted = choose(scores, self.rows, places, wants, limit)
        tensors = [chosen, accepted] if n_draft.any() else [chosen]
        if not len(assembly.asked):
            return tensors
        (about,) = self._upload.send([assembly.asked])
        return [*tensors, *rank_tokens(logits[about], chosen[about], max(assembly.counts))]

    def _choose(self, hidden: Tensor, at: Places, wants: Wants) -> tuple[Tensor, Tensor]:
        into = self._chosen[: len(at.row)], self._accepted[: len(at.first) - 1]
        return choose(self.model.logits(hidden), self.rows, at, wants, into=into)

    def _pool(self, step: Launched, i: int, s: SeqPlan, tensors: list[Tensor]) -> list[tuple[int, int]]:
        """Take in the hidden states of a row that pools: -> (i, which of ``tensors`` is its embedding) if it is due."""
        assert step.hidden is not None
        row = self.rows.pooled[s.row]
        row.add(step.hidden[step.cu_q[i] : step.cu_q[i + 1]])
        if not s.pools:
            return []
        tensors.append(row.embedding())
        return [(i, len(tensors) - 1)]

    def _prompt_logprobs(self, step: Launched, i: int, tensors: list[Tensor]) -> tuple[int, int, int, int, int]:
        """For the prompt positions that plan.seqs[i] made known: the logits of p are about token p + 1.

        -> (i, first position, how many top entries, which of ``tensors`` are theirs: from, to)
        """
        assert step.hidden is not None
        sampler, row, first = self.rows.sampler, int(step.rows[i]), int(step.start[i]) + 1
        last = min(int(step.end[i]), int(sampler.prompt_len[row]) - 1)  # inclusive
        targets = self.rows.tokens[row, first : last + 1].long()
        hidden = step.hidden[step.cu_q[i] : step.cu_q[i] + len(targets)]
        count, begin = int(sampler.prompt_logprobs[row]), len(tensors)
        piece = max(1, PROMPT_LOGITS // sampler.vocab_size)
        for h, t in zip(hidden.split(piece), targets.split(piece)):
            tensors += rank_tokens(self.model.logits(h), t, count)
        return i, first, count, begin, len(tensors)

    def _on_stream(self) -> Any:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
