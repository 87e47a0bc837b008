"""Normalisation over the hidden dimension, in float32 whatever the dtype of the activations.

The idea: a row is read once, kept in registers while it is reduced, and written once; adding the residual stream in the
same pass saves a read and a write of the whole activation. Each program reduces one row in a tree whose shape depends
on the row's length only, so these kernels are batch-invariant as they are.

Roofline: bytes; (read + written) * T * H. Measured on an H200, 8,192 rows of 4,096: 86% of it, 90%
with the residual; 256 rows: 4 µs, of which 3 are launch and latency.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, overlap


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., H] divided by its root mean square, times weight [H] -> [..., H] in x's dtype (Zhang & Sennrich 2019).

    The product with the weight is taken in x's dtype, as the Llama family was trained.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    _launch(_rms_norm, rows, rows, out, out, weight, eps, ADD=False)
    return out.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add x [T, H] to the residual stream and normalise the sum: -> (normed [T, H], new residual [T, H])."""
    out, total = torch.empty_like(x), torch.empty_like(x)
    _launch(_rms_norm, x, residual, out, total, weight, eps, ADD=True)
    return out, total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x [..., H] with mean 0 and variance 1, times weight [H] plus bias [H] (Ba, Kiros & Hinton 2016)."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    _launch(_layer_norm, rows, out, weight, bias, eps)
    return out.view(x.shape)


def _launch(kernel: Any, x: Tensor, *args: Any, **flags: bool) -> None:
    """One program per row; the first two dimensions' sizes are read off ``x``, whose rows may be strided."""
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    if rows:
        kernel[(rows,)](
            x, *args, x.stride(0), width, **flags, BLOCK=block, num_warps=min(8, max(1, block // 512)), **OVERLAP
        )


@triton.jit
def _rms_norm(x, residual, out, total, weight, eps, stride, width, ADD: tl.constexpr, BLOCK: tl.constexpr):
    overlap()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    kind = x.dtype.element_ty
    value = tl.load(x + row * stride + i, mask=i < width, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row * width + i, mask=i < width, other=0.0).to(tl.float32)
        value = value.to(kind).to(tl.float32)  # what is normalised is what the stream will hold
        tl.store(total + row * width + i, value.to(kind), mask=i < width)
    normed = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    scale = tl.load(weight + i, mask=i < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + i, (normed.to(kind).to(tl.float32) * scale).to(kind), mask=i < width)


@triton.jit
def _layer_norm(x, out, weight, bias, eps, stride, width, BLOCK: tl.constexpr):
    overlap()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + i, mask=i < width, other=0.0).to(tl.float32)
    centred = tl.where(i < width, value - tl.sum(value, 0) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    scale = tl.load(weight + i, mask=i < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + i, mask=i < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + i, (normed * scale + shift).to(out.dtype.element_ty), mask=i < width)
