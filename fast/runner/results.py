"""Results on their way to the host: copied into pinned memory on a second stream, behind the step that made them.

The step's own stream goes on with the next step at once. Whoever wants the result waits for the copy, not for whatever
was launched since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.reference.control.plan import StepResult


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
    """A launched step: its tensors on their way, and how to make a result of them."""

    fetched: Fetched
    assemble: Callable[[list[Tensor]], StepResult]

    def wait(self) -> StepResult:
        return self.assemble(self.fetched.wait())
