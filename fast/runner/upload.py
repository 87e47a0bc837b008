"""Numbers for the device: packed into one pinned buffer, sent by one asynchronous copy.

A copy from ordinary memory would make the host wait until the GPU has done everything before it; that wait is what
running ahead avoids. The buffers take turns, and before one is written again its last copy must be over, which it is
unless the host is several steps ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SLOTS = 16  # a step sends up to eight times
ALIGNED = 4  # int32 numbers: every array starts at a multiple of 16 bytes, for which kernels are compiled


def aligned(size: int) -> int:
    """``size`` numbers rounded up, so that the array behind them begins where it should."""
    return -(-size // ALIGNED) * ALIGNED


class Upload:
    """A ring of pinned buffers for one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = [torch.empty(0, dtype=torch.int32)] * SLOTS
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS
        self._next = 0

    def send(self, arrays: Sequence[npt.NDArray[np.integer]], into: Tensor | None = None) -> list[Tensor]:
        """The arrays as int32 tensors on the device, stretches of one tensor: of ``into`` (int32) if it is given.

        They are copied when the current stream comes to it; the host waits for nothing.
        """
        begins = [0, *accumulate(aligned(array.size) for array in arrays)]
        total = begins[-1]
        pinned = self._buffer(total)
        flat = pinned.numpy()
        for begin, array in zip(begins, arrays):
            flat[begin : begin + array.size] = array.reshape(-1)
        target = torch.empty(total, dtype=torch.int32, device=self.device) if into is None else into[:total]
        target.copy_(pinned[:total], non_blocking=True)
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._copied[self._next] = event
        self._next = (self._next + 1) % SLOTS
        return [target[begin : begin + array.size].view(array.shape) for begin, array in zip(begins, arrays)]

    def _buffer(self, size: int) -> Tensor:
        """The next buffer of the ring, no longer in use and large enough."""
        copied = self._copied[self._next]
        if copied is not None:
            copied.synchronize()
        if self._pinned[self._next].numel() < size:
            room = max(1 << 14, 1 << (size - 1).bit_length())
            pinned = torch.empty(room, dtype=torch.int32, pin_memory=self.device.type == "cuda")
            self._pinned[self._next] = pinned
        return self._pinned[self._next]
