"""Rows and weights: ``embed`` looks rows up, ``linear`` multiplies by a weight matrix, ``pack`` prepares a model's.

The idea. oneDNN multiplies 16-bit matrices on the processor's matrix units, for which the weight has to lie in tiles;
``F.linear`` brings it into that order anew at every call. ``pack`` does it once, when a model is loaded.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_FOR = 16  # rows for which oneDNN chooses the order; any number can be multiplied


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of the embedding table: ids [T] (int), weight [V, H] -> [T, H]."""
    return weight.index_select(0, ids)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plain or packed, plus bias [N] -> [T, N], all of one dtype."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def pack(model: Any) -> None:
    """Replace the weights that ``linear`` reads by packed ones, if oneDNN can and it helps.

    These are the matrices of the layers and ``lm_head``. (One that is the embedding, too, is in memory twice then.)
    ``weight.to_dense()`` is the plain matrix again.
    """
    for owner in (*model.layers, model):
        names = [f.name for f in fields(owner)] if owner is not model else ["lm_head"]
        for name in names:
            weight = getattr(owner, name)
            if isinstance(weight, Tensor) and weight.dim() == 2 and weight.dtype == torch.bfloat16:
                setattr(owner, name, torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR))
