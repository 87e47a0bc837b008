"""Rows and weights: ``embed`` looks rows up, ``linear`` multiplies by a weight matrix.

``linear`` is the seam for other kinds of weight (quantized, with adapters): it will choose by the type of ``weight``.
Today there is one type, a plain tensor.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of the embedding table: ids [T] (int), weight [V, H] -> [T, H]."""
    return weight.index_select(0, ids)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N] -> [T, N], all of one dtype."""
    return F.linear(x, weight, bias)
