"""The fast data plane: executes a ``StepPlan`` on a GPU, launch by launch, and never waits for what it launched.

The same plans, rows and order of things as in ``quire.reference.runner``. But ``forward`` and ``sample`` return as soon
as everything is launched; the tokens stay on the device, in their rows, where the next step finds them, and a copy goes
to the host. So the engine may launch step n+1 while step n runs, and planning, bookkeeping and answering cost no time
of the GPU's.

A step in which every sequence computes one token and samples is a *decode step* and replays a graph (graphs.py). All
others (prompt chunks, mixed with decodes) are launched kernel by kernel: they are long enough to hide that.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.fast.ops import copy_blocks
from quire.fast.runner.graphs import Graphs, ladder
from quire.fast.runner.inputs import Inputs, build_inputs
from quire.fast.runner.memory import measure_activations
from quire.fast.runner.results import Fetcher, Pending
from quire.fast.runner.rows import Rows, Run
from quire.fast.runner.rules import RowRules
from quire.fast.runner.sampling import Wants, choose
from quire.fast.runner.swap import Caches, SwapSpace
from quire.fast.runner.upload import Upload
from quire.reference.control.plan import SeqPlan, StepPlan, StepResult, Swap
from quire.reference.models import Model
from quire.reference.sampling import SamplerState, as_logprobs, rank_tokens
from quire.reference.sampling.logprobs import Ranked

Ints = npt.NDArray[np.int64]
PROMPT_LOGITS = 1 << 26  # logits of prompt positions computed at once, in numbers


@dataclass
class Launched:
    """A forward pass that has not been sampled yet.

    rows, start, end   of plan.seqs, int64 [S], on the host
    cu_q               query offsets int32 [S + 1], on the host
    which              the plan.seqs that sample
    inputs, hidden     of the forward pass; hidden [T, H], and T may be padded
    at, row, length    int32 tensors, one entry per position that is sampled: its place among the step's tokens (None:
                       the first so many), its row, the tokens known before it. In a decode step padding follows.
    wanted             ``at``, if these are the only tokens of which there are hidden states
    graph              the decode step's batch size, None for all other steps
    """

    plan: StepPlan
    rows: Ints
    start: Ints
    end: Ints
    cu_q: npt.NDArray[np.int32]
    which: list[int]
    inputs: Inputs | None = None
    hidden: Tensor | None = None
    at: Tensor | None = None
    wanted: Tensor | None = None
    row: Tensor | None = None
    length: Tensor | None = None
    graph: int | None = None

    @property
    def hidden_rows(self) -> Ints:
        """Which of the step's tokens the first rows of ``hidden`` are."""
        rows = np.arange(self.cu_q[-1]) if self.wanted is None else self.cu_q[1:][self.which] - 1
        return rows.astype(np.int64)


class ModelRunner:
    """Rows, KV cache and sampler around one model whose ops are ``quire.fast.ops`` (or its ``invariant`` twin).

    max_num_seqs     number of rows
    max_model_len    longest sequence, prompt and output
    device, dtype    where the model is and the KV cache shall be, and the cache's dtype
    enforce_eager    use no graphs
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
    ) -> None:
        self.model, self.dtype = model, dtype
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
        self._decode_inputs = torch.zeros(4 * _aligned(max_num_seqs), dtype=torch.int32, device=self.device)
        # What a decode step chose, until it is fetched. Not in the graphs' pool: there the next forward pass may put
        # its temporaries, and it does not wait for the fetching.
        self._chosen = torch.zeros(max_num_seqs, dtype=torch.int64, device=self.device)
        self._offsets = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=self.device)
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
                return measure_activations(self.model, self.rows, self.dtype, max_num_batched_tokens)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()

    def allocate_kv(self, num_blocks: int, num_host_blocks: int = 0) -> None:
        """Allocate the KV cache: per layer K and V [num_blocks, block_size, kv_heads, head_dim], and the swap space.

        ``num_blocks`` counts the null block 0, which padding reads: it is cleared, and nothing else is.
        """
        c = self.model.config
        shape = (num_blocks, self.block_size, c.num_kv_heads, c.head_dim)
        both = [torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2 * c.num_layers)]
        for cache in both:
            cache[0].zero_()
        self.caches = list(zip(both[::2], both[1::2]))
        self._swap_space = SwapSpace(self.caches, num_host_blocks) if num_host_blocks else None
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
            new_block = self._apply(plan)
            if not plan.seqs:
                empty = np.zeros(0, np.int64)
                self._launched = Launched(plan, empty, empty, empty, np.zeros(1, np.int32), [])
                return
            fields = np.array([(s.row, s.start, s.n, s.write) for s in plan.seqs], np.int64).T
            rows, start, n, writes = fields
            cu_q = np.zeros(len(rows) + 1, np.int32)
            np.cumsum(n, out=cu_q[1:])
            which = [i for i, s in enumerate(plan.seqs) if s.samples]
            step = Launched(plan, rows, start, start + n, cu_q, which)
            seqs = np.stack([rows, start, writes, new_block]).astype(np.int32)
            if cu_q[-1] == len(rows) == len(which):
                self._forward_decodes(step, seqs)
            else:
                self._forward_mixed(step, seqs, int(n.max()))
            self._launched = step

    def _forward_decodes(self, step: Launched, seqs: npt.NDArray[np.int32]) -> None:
        count = seqs.shape[1]
        size = next(size for size in self._ladder if size >= count)
        padded = np.zeros((4, _aligned(size)), np.int32)
        padded[0] = self.rows.padding
        padded[:, :count] = seqs
        self._upload.send([padded], into=self._decode_inputs)
        step.graph = size
        step.inputs, step.hidden, step.row = self._graphs.run(("forward", size), partial(self._decode, size))
        step.length = step.inputs.meta.seq_len

    def _decode(self, size: int) -> tuple[Inputs, Tensor, Tensor]:
        """The forward pass of a decode step, from what is in the input buffer."""
        row, start, writes, new_block = self._decode_inputs[: 4 * _aligned(size)].view(4, -1)[:, :size]
        inputs = build_inputs(self.rows, row, start, writes, new_block, self._offsets[: size + 1], size, 1)
        hidden = self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.meta)  # type: ignore[arg-type]
        return inputs, hidden, row

    def _forward_mixed(self, step: Launched, seqs: npt.NDArray[np.int32], longest: int) -> None:
        at = step.cu_q[1:][step.which] - 1
        sampled: list[npt.NDArray[np.integer]] = [at, step.rows[step.which], step.end[step.which]]
        row, start, writes, new_block, cu_q, *positions = self._upload.send([*seqs, step.cu_q, *sampled])
        step.at, step.row, step.length = positions
        step.inputs = build_inputs(
            self.rows, row, start, writes, new_block, cu_q, tokens=int(step.cu_q[-1]), max_q=longest
        )
        if not self.rows.pooled and not (self.rows.sampler.prompt_logprobs[step.rows] >= 0).any():
            step.wanted = step.at
        i = step.inputs
        step.hidden = self.model.forward(i.ids, i.positions, self.caches, i.meta, step.wanted)  # type: ignore[arg-type]

    def _apply(self, plan: StepPlan) -> Ints:
        """Everything before the forward pass, in the documented order. -> the block that each of plan.seqs gained, if
        its inputs will bring it into the row; other changes of block tables are made here."""
        rows = self.rows
        rows.start_and_fork(plan)
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
            if s.n_draft:
                raise NotImplementedError(f"sequence {s.seq_id} has {s.n_draft} drafted tokens: no verification yet")
            if s.new_blocks:  # what stands behind ``start`` was reserved for drafts that were rejected
                have = min(int(rows.num_blocks[s.row]), -(-s.start // self.block_size))
                if s.n == len(s.new_blocks) == 1 and have == s.start // self.block_size:
                    gained[i] = s.new_blocks[0]
                else:
                    runs.append((s.row, have, s.new_blocks))
                rows.num_blocks[s.row] = have + len(s.new_blocks)
        rows.replace_blocks(runs)
        return gained

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
        sampler = self.rows.sampler
        with self._on_stream():
            tensors: list[Tensor] = []
            asked, prompts, pooled = np.zeros(0, np.int64), [], []
            if step.which:
                rows = step.rows[step.which]
                asked = np.flatnonzero(sampler.logprobs[rows] >= 0)
                tensors += self._sample(step, rows, masks, asked)
            for i in np.flatnonzero(sampler.prompt_logprobs[step.rows] >= 0).tolist():
                row = step.rows[i]
                if row not in self.rows.pooled and step.start[i] + 1 < sampler.prompt_len[row]:
                    prompts.append(self._prompt_logprobs(step, i, tensors))
            if self.rows.pooled:
                for i, s in enumerate(step.plan.seqs):
                    if s.row in self.rows.pooled:
                        pooled += self._pool(step, i, s, tensors)
            counts = sampler.logprobs[step.rows[step.which]][asked].tolist()
            return Pending(
                self._fetcher.fetch(tensors), partial(_assemble, step.plan, step.which, asked, counts, prompts, pooled)
            )

    def _sample(self, step: Launched, rows: Ints, masks: Mapping[int, Any], asked: Ints) -> list[Tensor]:
        """-> the chosen tokens, and what there is to know about those of the positions ``asked``."""
        assert step.hidden is not None and step.row is not None and step.length is not None
        sampler = self.rows.sampler
        wants = Wants.of(sampler, rows)
        lengths, count = step.end[step.which], len(rows)
        ruled = sampler.lasting[rows] | (lengths - sampler.prompt_len[rows] < sampler.min_tokens[rows])
        if step.graph is not None and not (masks or ruled.any() or len(asked)):
            self._fetcher.before_overwriting()
            choose_all = partial(self._choose, step.hidden, step.row, step.length, wants)
            return [self._graphs.run(("sample", step.graph, wants), choose_all)[:count]]
        hidden = step.hidden[:count]
        if step.at is not None and step.wanted is None:
            hidden = step.hidden.index_select(0, step.at)
        logits = self.model.logits(hidden)
        in_batch = {i: k for k, i in enumerate(step.which)} if masks else {}
        by_position = {in_batch[i]: mask for i, mask in masks.items()}
        scores = self._rules.apply(logits, rows, lengths, self.rows.tokens, by_position)
        chosen = choose(scores, self.rows, step.row[:count], step.length[:count], wants)
        if not len(asked):
            return [chosen]
        (at,) = self._upload.send([asked])
        return [chosen, *rank_tokens(logits[at], chosen[at], int(sampler.logprobs[rows[asked]].max()))]

    def _choose(self, hidden: Tensor, row: Tensor, length: Tensor, wants: Wants) -> Tensor:
        return choose(self.model.logits(hidden), self.rows, row, length, wants, into=self._chosen[: len(row)])

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


def _aligned(size: int) -> int:
    """``size`` int32 numbers rounded up to 16 bytes, where kernels expect arrays to begin."""
    return -(-size // 4) * 4


def _assemble(
    plan: StepPlan,
    which: list[int],
    asked: Ints,
    counts: list[int],
    prompts: list[tuple[int, int, int, int, int]],
    pooled: list[tuple[int, int]],
    tensors: list[Tensor],
) -> StepResult:
    """The step's result from the tensors that were fetched, in the order in which ``sample`` listed them."""
    result = StepResult(plan.step, [[] for _ in plan.seqs])
    if which:
        for i, token in zip(which, tensors[0].tolist()):
            result.tokens[i] = [token]
    if len(asked):
        entries = as_logprobs(Ranked(*tensors[1:6]), counts)
        result.logprobs = {which[k]: [entry] for k, entry in zip(asked.tolist(), entries)}
    for i, first, count, begin, end in prompts:
        parts = [Ranked(*tensors[at : at + 5]) for at in range(begin, end, 5)]
        result.prompt_logprobs[i] = first, [e for p in parts for e in as_logprobs(p, [count] * len(p.token_ids))]
    for i, at in pooled:
        result.pooled[i] = tensors[at].numpy().astype("<f4").tobytes()
    return result
