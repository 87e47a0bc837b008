"""Results on their way to the host: copied into pinned memory on a second stream, behind the step that made them.

The step's own stream goes on with the next step at once. Whoever wants the result waits for the copy, not for whatever
was launched since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.sampling import as_logprobs
from quire.reference.sampling.logprobs import Ranked

Ints = npt.NDArray[np.int64]


class Fetcher:
    """Brings tensors of one device to the host."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: torch.cuda.Event | None = None

    def fetch(self, tensors: Sequence[Tensor]) -> Fetched:
        """Start to copy what the current stream computes into ``tensors``."""
        if self._stream is None:
            return Fetched([t.clone() for t in tensors], None, ())
        hosts = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for host, tensor in zip(hosts, tensors):
                host.copy_(tensor, non_blocking=True)
            self._last = torch.cuda.Event()
            self._last.record()
        return Fetched(hosts, self._last, tuple(tensors))

    def before_overwriting(self) -> None:
        """Let the current stream wait until all that was to be fetched has been read (graphs reuse their outputs)."""
        if self._last is not None:
            torch.cuda.current_stream().wait_event(self._last)


@dataclass
class Fetched:
    """Tensors that arrive on the host. ``sources`` keeps their device memory from being used for anything else."""

    hosts: list[Tensor]
    arrived: torch.cuda.Event | None
    sources: tuple[Tensor, ...]

    def wait(self) -> list[Tensor]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.hosts


@dataclass
class Pending:
    """A launched step: its tensors on their way, how to make a result of them, and what is to be done with it then."""

    fetched: Fetched
    assemble: Callable[[list[Tensor]], StepResult]
    then: Callable[[StepResult], None] | None = None
    result: StepResult | None = None

    def wait(self) -> StepResult:
        if self.result is None:
            self.result = self.assemble(self.fetched.wait())
            if self.then is not None:
                self.then(self.result)
        return self.result


@dataclass
class Assembly:
    """A step's result from the tensors that were fetched: tokens, acceptance, entries of log-probabilities, the rest.

    which     the plan.seqs that sample, R of them
    n_draft   int64 [R], drafts of each
    limit     int64 [R], how many of its positions count
    asked     int64 [N], the sampled positions (of all R + sum(n_draft)) of which log-probabilities are wanted
    counts    how many entries are wanted of each of these
    prompts   (index in plan.seqs, first position, entries per position, which of the tensors: from, to)
    pooled    (index in plan.seqs, which of the tensors is its embedding)
    """

    plan: StepPlan
    which: list[int]
    n_draft: Ints
    limit: Ints
    asked: Ints
    counts: list[int]
    prompts: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    pooled: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, tensors: list[Tensor]) -> StepResult:
        result = StepResult(self.plan.step, [[] for _ in self.plan.seqs])
        if self.which:
            self._tokens(result, tensors)
        for i, first, count, begin, end in self.prompts:
            parts = [Ranked(*tensors[at : at + 5]) for at in range(begin, end, 5)]
            result.prompt_logprobs[i] = first, [e for p in parts for e in as_logprobs(p, [count] * len(p.token_ids))]
        for i, at in self.pooled:
            result.pooled[i] = tensors[at].numpy().astype("<f4").tobytes()
        return result

    def _tokens(self, result: StepResult, tensors: list[Tensor]) -> None:
        chosen, *more = tensors
        drafted = bool(self.n_draft.any())
        accepted = more.pop(0).numpy() if drafted else np.zeros(len(self.which), np.int32)
        gained = np.minimum(accepted + 1, self.limit)
        first = np.cumsum(self.n_draft + 1) - self.n_draft - 1
        tokens = chosen.tolist()
        for i, begin, count in zip(self.which, first.tolist(), gained.tolist()):
            result.tokens[i] = tokens[begin : begin + count]
        if drafted:
            result.accepted = {i: a for i, n, a in zip(self.which, self.n_draft, accepted.tolist()) if n}
        if len(self.asked):
            entries = dict(zip(self.asked.tolist(), as_logprobs(Ranked(*more[:5]), self.counts)))
            for i, begin, count in zip(self.which, first.tolist(), gained.tolist()):
                if begin in entries:
                    result.logprobs[i] = [entries[p] for p in range(begin, begin + count)]
