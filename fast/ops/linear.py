"""Rows and weights: ``embed`` looks rows up, ``linear`` multiplies by a weight matrix.

The idea. For many rows a matrix product is bound by the matrix units, and cuBLAS is very good at it. For one row it is
bound by reading the weight once, and a small matrix (Qwen3-0.6B's are 2 to 12 MB) is over before a kernel made of
large tiles has filled the GPU. There a program that takes just a few rows of the weight, and so a thousand programs,
comes much closer to the memory's speed; the first weights are fetched while the kernel before still runs.

A few rows, as in the verification of drafts, are still bound by reading the weight, but each weight meets several
numbers, which is work for the matrix units: the weight's tile is the left operand there, so that x may be narrow. Six
rows through the four matrices of an 8B model's layer, measured with a prototype: 114 µs, cuBLAS 118, a single row 108
(a chain in a graph; the row few_rows of benchmarks.kernels is this kernel itself).

Which one runs is looked up by the number of rows and the shape of the weight. From nine rows on, or for a small weight,
it is cuBLAS: tiles of 16 to 128 rows in Triton, weights fetched ahead, were at best a tenth faster (64 rows of the 0.6B
shape), and slower for larger matrices.

Microseconds for one row, bf16, on an H200 (a chain in a graph): rows of the weight x columns, this kernel, the floor.

    Qwen3-0.6B    4096 x 1024   3.3  1.9        1024 x 2048   2.0  1.0
                  6144 x 1024   4.2  2.9        1024 x 3072   2.8  1.5
    Llama-3-8B    6144 x 4096  14.2  11.6       4096 x 4096  10.3  7.7
                 28672 x 4096  54.6  54.0       4096 x 14336 28.8  27.0

Roofline of the small kernel: bytes; N * K numbers of the weight. A layer of the 0.6B model has 32 MB in four kernels of
2 to 4 µs each: there the launches are what is left.
"""

from __future__ import annotations

import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.device import OVERLAP, math_dtype, overlap

FEW = 8  # rows
LARGE = 4096  # rows and columns of a weight for which few_rows was measured


def embed(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of the embedding table: ids [T] (int), weight [V, H] -> [T, H]. torch's own gather is at the roofline."""
    return weight.index_select(0, ids)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N] -> [T, N], all of one dtype."""
    if x.shape[0] == 1 and x.is_cuda:
        return gemv(x, weight, bias)
    if 1 < x.shape[0] <= FEW and min(weight.shape) >= LARGE and x.is_cuda and x.element_size() == 2:
        return few_rows(x, weight, bias)
    return F.linear(x, weight, bias)


def gemv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` for a single row: x [1, K], weight [N, K] contiguous -> [1, N]."""
    outputs, depth = weight.shape
    out = x.new_empty(1, outputs)
    rows, columns, warps = _tile(depth)
    _gemv[(triton.cdiv(outputs, rows),)](
        x, weight, weight if bias is None else bias, out, depth, outputs,
        BIAS=bias is not None, OUTPUTS=rows, DEPTH=columns, num_warps=warps, **OVERLAP,
    )  # fmt: skip
    return out


def _tile(depth: int) -> tuple[int, int, int]:
    """Rows of the weight per program, columns per iteration, and warps; measured on an H200."""
    if depth <= 1024:
        return 4, min(512, triton.next_power_of_2(depth)), 1
    if 2048 < depth < 4096:
        return 2, 4096, 8  # one iteration
    return 4, 2048, 4


@triton.jit
def _gemv(x, weight, bias, out, depth, outputs, BIAS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr):
    """OUTPUTS rows of the weight times x: products are added up lane by lane, and last of all across the lanes."""
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, DEPTH)
    rows = weight + n.to(tl.int64)[:, None] * depth
    # Weights depend on no earlier kernel: the first are on their way while that one ends.
    w = tl.load(rows + k[None, :], mask=(n < outputs)[:, None] & (k < depth)[None, :], other=0.0)
    overlap()
    acc = w.to(tl.float32) * tl.load(x + k, mask=k < depth, other=0.0).to(tl.float32)[None, :]
    for start in range(DEPTH, depth, DEPTH):
        k = start + tl.arange(0, DEPTH)
        w = tl.load(rows + k[None, :], mask=(n < outputs)[:, None] & (k < depth)[None, :], other=0.0)
        acc += w.to(tl.float32) * tl.load(x + k, mask=k < depth, other=0.0).to(tl.float32)[None, :]
    total = tl.sum(acc, 1)
    if BIAS:
        total += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=n < outputs)


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` for up to 16 rows: x [T, K], weight [N, K] contiguous -> [T, N]."""
    outputs, depth = weight.shape
    out = x.new_empty(len(x), outputs)
    # Measured on an H200: outputs per program, columns per iteration, warps, stages.
    tile, columns, warps, stages = (64, 128, 4, 4) if outputs >= 16384 else (16, 512, 2, 3)
    even = outputs % tile == 0 and depth % columns == 0  # then no load of the weight needs a mask
    _few_rows[(triton.cdiv(outputs, tile),)](
        x, weight, weight if bias is None else bias, out, len(x), depth, outputs, x.stride(0),
        BIAS=bias is not None, EVEN=even, OUTPUTS=tile, DEPTH=columns, MATH=math_dtype(x.dtype),
        num_warps=warps, num_stages=stages, **OVERLAP,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x, weight, bias, out, rows, depth, outputs, stride,
    BIAS: tl.constexpr, EVEN: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """OUTPUTS rows of the weight times all of x, as the transpose of the result."""
    n, k, r = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, DEPTH), tl.arange(0, 16)
    own = weight + n.to(tl.int64)[:, None] * depth
    overlap()
    acc = tl.zeros([OUTPUTS, 16], tl.float32)
    for start in range(0, depth, DEPTH):
        inside = start + k < depth
        columns = x + r[None, :] * stride + start + k[:, None]
        if EVEN:
            w = tl.load(own + start + k[None, :])
            xs = tl.load(columns, mask=(r < rows)[None, :], other=0.0)
        else:
            w = tl.load(own + start + k[None, :], mask=(n < outputs)[:, None] & inside[None, :], other=0.0)
            xs = tl.load(columns, mask=(r < rows)[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(w.to(MATH), xs.to(MATH), acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[:, None]
    to = out + r[None, :] * outputs + n[:, None]
    tl.store(to, acc.to(out.dtype.element_ty), mask=(r < rows)[None, :] & (n < outputs)[:, None])
