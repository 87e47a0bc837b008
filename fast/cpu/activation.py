"""The non-linear functions between the two halves of a feed-forward layer.

The idea: one pass, with an exponential that the compiler can put on vector units. Bound by arithmetic, about 20
instructions per number. On one core, float32: ``silu_and_mul`` of 512 rows of 2 × 512 in 191 µs (0.7 ns per number),
the reference's two operators 223; ``gelu_new`` of 512 rows of 1,024 in 342 µs, the reference 3,063.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.fast.cpu.kernels import KINDS, activate
from quire.fast.cpu.launch import empty_result, rows_dense, threads_for

GRAIN = 1 << 13  # numbers per thread, at the least


def silu_and_mul(x: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): x [T, 2I] holds gate and up side by side -> silu(gate) * up, [T, I]."""
    return _activate(x, x.shape[-1] // 2, gelu=False)


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as GPT-2 was trained (Hendrycks & Gimpel 2016); any shape."""
    return _activate(x, x.shape[-1], gelu=True)


def relu(x: Tensor) -> Tensor:
    """max(x, 0); any shape."""
    return torch.relu(x)


def _activate(x: Tensor, n: int, *, gelu: bool) -> Tensor:
    rows = rows_dense(x.reshape(-1, x.shape[-1]))
    out = empty_result((len(rows), n), x.dtype)
    activate(
        rows.data_ptr(), out.data_ptr(), len(rows), n, rows.stride(0), KINDS[x.dtype], KINDS[out.dtype], gelu,
        threads=threads_for(out.numel(), GRAIN),
    )  # fmt: skip
    return out.to(x.dtype).view(*x.shape[:-1], n)
