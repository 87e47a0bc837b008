"""Normalisation over the hidden dimension, in float32 whatever the dtype of the activations.

Each row is reduced on its own, in an order that depends only on its length; these definitions are therefore already
batch-invariant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H] divided by its root mean square, times weight [H] -> [..., H] in x's dtype (Zhang & Sennrich 2019).

    The product with the weight is taken in x's dtype, as the Llama family was trained.
    """
    y = x.float()
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps)
    return y.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x [T, H] to the residual stream and normalise the sum: -> (normed [T, H], new residual [T, H])."""
    residual = x + residual
    return rms_norm(residual, weight, eps), residual


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., H] with mean 0 and variance 1, times weight [H] plus bias [H] (Ba, Kiros & Hinton 2016)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)
