"""The non-linear functions between the two halves of a feed-forward layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): x [T, 2I] holds gate and up side by side -> silu(gate) * up, [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as GPT-2 was trained (Hendrycks & Gimpel 2016); any shape."""
    y = x.float()
    return (0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)))).to(x.dtype)


def relu(x: Tensor) -> Tensor:
    """max(x, 0); any shape."""
    return torch.relu(x)
