"""Rows and weights: ``embed`` looks rows up, ``linear`` multiplies by a weight matrix, ``pack`` prepares a model's.

The idea. oneDNN multiplies 16-bit matrices on the processor's matrix units, for which the weight has to lie in tiles;
``F.linear`` brings it into that order anew at every call. ``pack`` does it once, when a model is loaded. All linears of
a layer, bfloat16 on one core with AMX, weights not in its caches, microseconds:

                 rows     1      4     16     64
    hidden 768   F.linear 1,552  1,770  1,830  2,515
                 packed   1,065  1,102  1,207  1,653      (reading the weight at 15 GB/s: 940)
    hidden 256   F.linear   197    214    209    289
                 packed     136    140    140    197

float32 stays as it is: packed, one row takes a fifth longer, and 16 rows a fifth less.
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
    """Replace the weights that ``linear`` reads, the matrices of the layers and ``lm_head``, by packed ones.

    (One that is the embedding, too, is in memory twice then.) The loader's ``places()`` are no more.
    """
    for layer in model.layers:
        for field in fields(layer):
            weight = getattr(layer, field.name)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                setattr(layer, field.name, packed(weight))
    model.lm_head = packed(model.lm_head)


def packed(weight: Tensor) -> Tensor:
    """weight [N, K] in oneDNN's order, ``to_dense()`` undoes it; or itself, if that does not help or cannot be."""
    if not torch.backends.mkldnn.is_available():
        return weight
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if weight.dtype not in supported or not supported[weight.dtype]():
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR)
