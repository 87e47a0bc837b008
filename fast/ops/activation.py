"""The non-linear functions between the two halves of a feed-forward layer.

The idea of ``silu_and_mul``: both halves are read and the product is written in one pass, where torch would write and
read ``silu(gate)`` in between. Every element is computed alike wherever it stands, so all of this is batch-invariant.

Roofline: bytes; 3 * T * I numbers for ``silu_and_mul``, 2 for each element of the others. Measured on an H200,
I = 14,336: 95% of it with 8,192 rows, 82% with 256.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap

BLOCK = 1024


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): x [T, 2I] holds gate and up side by side -> silu(gate) * up, [T, I]."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    if rows:
        block = min(BLOCK, triton.next_power_of_2(width))
        _silu_and_mul[(rows, triton.cdiv(width, block))](x, out, x.stride(0), width, block, num_warps=4, **OVERLAP)
    return out


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as GPT-2 was trained (Hendrycks & Gimpel 2016); any shape."""
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _gelu_new[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK, num_warps=4)
    return out


def relu(x: Tensor) -> Tensor:
    """max(x, 0); any shape. torch's own kernel is at the roofline."""
    return torch.relu(x)


@triton.jit
def _silu_and_mul(x, out, stride, width, BLOCK: tl.constexpr):
    overlap()
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * stride + i, mask=i < width, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + width + i, mask=i < width, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)  # rounded in between, as two torch ops would
    tl.store(out + row * width + i, (silu * up).to(kind), mask=i < width)


@triton.jit
def _gelu_new(x, out, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x + i, mask=i < size, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh(z)) is the logistic function of 2z.
    twice = 1.5957691216057308 * (y + 0.044715 * y * y * y)
    tl.store(out + i, (y / (1 + tl.exp(-twice))).to(out.dtype.element_ty), mask=i < size)
