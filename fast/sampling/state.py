"""The sampling parameters of every row, on the device: a copy of what ``quire.reference.sampling.SamplerState`` holds.

The host keeps its arrays, because it interprets parameters when a row starts or forks; of rows that changed, the words
are written here. Kernels look parameters up by row, so nothing is gathered at a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.sampling import SamplerState

FLOATS = ("temperature", "top_p", "log_min_p", "presence", "frequency", "repetition")
INTS = ("top_k", "prompt_len", "stream")


@dataclass
class DeviceSamplerState:
    """Tensors [num_rows, or a few more] by the names of ``SamplerState``.

    Seeds and streams hold unsigned values in signed types. All tensors are parts of ``packed``: first the seeds, as two
    words each, then the others one after the other.
    """

    packed: Tensor
    seed: Tensor
    temperature: Tensor
    top_p: Tensor
    log_min_p: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    top_k: Tensor
    prompt_len: Tensor
    stream: Tensor

    @classmethod
    def like(cls, state: SamplerState, device: torch.device | str) -> DeviceSamplerState:
        """Tables for all rows of ``state``, filled from it."""
        num_rows = _padded(state)
        words = torch.zeros((2 + len(FLOATS) + len(INTS)) * num_rows, dtype=torch.int32, device=device)
        seed, *others = words.split([2 * num_rows] + [num_rows] * len(FLOATS + INTS))
        floats, ints = others[: len(FLOATS)], others[len(FLOATS) :]
        tables = cls(words, seed.view(torch.int64), *(part.view(torch.float32) for part in floats), *ints)
        where, values = tables.words(state, np.arange(len(state.temperature)))
        tables.put(*(torch.from_numpy(x).to(device) for x in (where, values)))
        return tables

    def words(self, state: SamplerState, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
        """What to write for the parameters of ``rows`` [N]: places and values for ``put``, int32 [11 N] each."""
        num_rows = _padded(state)
        seed = np.ascontiguousarray(state.seed[rows]).view(np.int32).reshape(-1, 2)
        values = [seed[:, 0], seed[:, 1]]
        values += [getattr(state, name)[rows].astype(np.float32).view(np.int32) for name in FLOATS]
        values += [getattr(state, name)[rows].astype(np.uint32).view(np.int32) for name in INTS]
        columns = [rows + (2 + i) * num_rows for i in range(len(FLOATS + INTS))]
        where = np.concatenate([2 * rows, 2 * rows + 1, *columns]).astype(np.int32)
        return [where, np.concatenate(values)]

    def put(self, where: Tensor, values: Tensor) -> None:
        """Write ``values`` (int32) to the words ``where`` (int32)."""
        if len(where):
            self.packed.index_copy_(0, where.long(), values)


def _padded(state: SamplerState) -> int:
    """The number of rows with which every tensor begins at a multiple of 16 bytes."""
    return -(-len(state.temperature) // 4) * 4
