"""The sampling parameters of every row, on the device: a copy of what ``quire.reference.sampling.SamplerState`` holds.

The host keeps its arrays, because it interprets parameters when a row starts or forks; the rows that changed are copied
here. Kernels look parameters up by row, so nothing is gathered at a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.reference.sampling import SamplerState


@dataclass
class DeviceSamplerState:
    """Tensors [num_rows] by the names of ``SamplerState``; seeds and streams hold unsigned values in signed types."""

    temperature: Tensor
    top_p: Tensor
    log_min_p: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    top_k: Tensor
    prompt_len: Tensor
    stream: Tensor
    seed: Tensor

    @classmethod
    def like(cls, state: SamplerState, device: torch.device | str) -> DeviceSamplerState:
        """Tables for all rows of ``state``, filled from it."""
        num_rows = len(state.temperature)
        tables = cls(**{name: torch.empty(num_rows, dtype=dtype, device=device) for name, dtype in _DTYPES.items()})
        tables.update(state, np.arange(num_rows))
        return tables

    def update(self, state: SamplerState, rows: np.ndarray) -> None:
        """Copy the parameters of ``rows`` [N] from the host."""
        at = torch.from_numpy(rows).to(self.seed.device)
        for name, dtype in _DTYPES.items():
            values = getattr(state, name)[rows]
            signed = values.view(f"i{values.itemsize}") if values.dtype.kind == "u" else values
            getattr(self, name)[at] = torch.from_numpy(signed).to(self.seed.device, dtype)


_DTYPES = {
    **dict.fromkeys(("temperature", "top_p", "log_min_p", "presence", "frequency", "repetition"), torch.float32),
    **dict.fromkeys(("top_k", "prompt_len", "stream"), torch.int32),
    "seed": torch.int64,
}
