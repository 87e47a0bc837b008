"""Embeddings from a decoder: the hidden states of a prompt, after the final norm, become one vector.

A prompt comes in chunks, so a mean is added up as they come. Floating-point sums depend on their order, and the chunks
would show in the last bits. So hidden states are rounded to multiples of 2⁻²⁸ first, which float64 adds exactly as long
as sums stay below 2²⁵ (33 million; a norm's outputs are of the order of 1), and an exact sum has no order. The error in
a mean, at most 2⁻²⁹, is what float32 itself commits for a number of 1/32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.reference.control.params import PoolingParams

STEPS = 2.0**28  # per unit
PIECE = 256  # positions converted to float64 at once


@dataclass
class PooledRow:
    """What is known of one prompt's embedding so far: the sum of the hidden states, times 2²⁸, and of how many."""

    params: PoolingParams
    total: Tensor | None = None  # float64 [hidden_size]
    count: int = 0

    def add(self, hidden: Tensor) -> None:
        """Take in the hidden states [n, hidden_size] of the prompt's next n positions."""
        if self.params.pooling == "last":
            self.total, self.count = hidden[-1].double() * STEPS, 1
            return
        for piece in hidden.split(PIECE):
            part = (piece.double() * STEPS).round_().sum(0)
            self.total = part if self.total is None else self.total + part
        self.count += len(hidden)

    def embedding(self) -> Tensor:
        """The vector, float32 [dimensions or hidden_size]."""
        assert self.total is not None, "no position was computed"
        vector = (self.total / (STEPS * self.count))[: self.params.dimensions]
        if self.params.normalize:
            vector = vector / torch.linalg.vector_norm(vector).clamp(min=torch.finfo(torch.float32).tiny)
        return vector.float()
