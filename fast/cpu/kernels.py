"""The compiled loops that go row by row, and what all compiled loops are made of: reading, rounding, ``exp``.

Memory is addressed by numbers, as in C: ``f32(address, first, n)`` is an array of the n float32 numbers from number
``first`` on. (Slices of arrays are counted references in numba; counting costs more than a row of 64 numbers.) An array
that only its address is used of is freed at its last mention: hence ``scratch[0] = 0`` at the end of kernels.

Rows are widened to float32 on the way in, computed in float32, and rounded on the way out, whatever their dtype is.
The row in work stays in the processor's first cache, so this costs little, and a kernel is compiled once and not once
per dtype. float16 is only read: what ends in float16 leaves as float32, and torch rounds it.

No result depends on how the work is split, and a row's not on any other row: each is computed by the same
instructions, in the same order, wherever it stands.

numba's cache on disk notices a change of a kernel's own file only: whoever changes a function that kernels of another
file use has to touch that file, too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray, njit

from quire.fast.cpu.launch import arguments, kernel, pointer

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
F32, BF16 = 0, 1
ZERO, ONE = np.float32(0), np.float32(1)
GELU = np.float32(-2 * math.sqrt(2 / math.pi))
SUMS = {"reassoc", "contract", "nsz", "arcp"}  # sums may use vector units; infinities and NaN keep their meaning


@njit
def f32(address, first, n):
    return carray(pointer(address + 4 * first), n, np.float32)


@njit
def bits32(address, first, n):
    return carray(pointer(address + 4 * first), n, np.uint32)


@njit
def bits16(address, first, n):
    return carray(pointer(address + 2 * first), n, np.uint16)


@njit
def i64(address, first, n):
    return carray(pointer(address + 8 * first), n, np.int64)


@njit
def share_of(count, part, parts):
    """The range of items that thread ``part`` works on."""
    return count * part // parts, count * (part + 1) // parts


# ------------------------------------------------------------------------------------------------------- numbers


@njit(fastmath=SUMS)
def load(to, address, first, n, kind):
    """n numbers of any kind from number ``first`` on -> float32 at address ``to``."""
    wide = bits32(to, 0, n)
    if kind == F32:
        same = bits32(address, first, n)
        for i in range(n):
            wide[i] = same[i]
    elif kind == BF16:  # the upper half of a float32
        half = bits16(address, first, n)
        for i in range(n):
            wide[i] = np.uint32(half[i]) << np.uint32(16)
    else:  # float16: read as the upper bits of a float32, it is too small by 2^112, the difference of the exponents
        half, x = bits16(address, first, n), f32(to, 0, n)
        for i in range(n):
            wide[i] = (np.uint32(half[i]) & np.uint32(0x7FFF)) << np.uint32(13)
        for i in range(n):
            x[i] = x[i] * np.float32(2.0**112)
        for i in range(n):
            special = np.uint32(0x7F800000) if wide[i] >= np.uint32(0x47800000) else np.uint32(0)  # infinity, NaN
            wide[i] |= special | (np.uint32(half[i]) & np.uint32(0x8000)) << np.uint32(16)


@njit
def store(x, address, first, n, kind):
    """n float32 at address ``x`` -> float32 or bfloat16, rounded to the nearest, ties to even."""
    wide = bits32(x, 0, n)
    if kind == F32:
        same = bits32(address, first, n)
        for i in range(n):
            same[i] = wide[i]
    else:
        half = bits16(address, first, n)
        for i in range(n):
            b = wide[i]
            rounded = (b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
            nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            half[i] = np.uint16(0x7FC0) if nan else np.uint16(rounded)


@njit(fastmath=SUMS)
def exp(x):
    """e^x with a relative error of 2e-7 + 7e-8 |x|; below -87 and above 88 that of -87 and 88.

    Unlike a library's function it becomes part of the loop that it is called in, and runs on vector units.
    2^t is 2^whole, which is put together from bits, times 2^fraction, a polynomial.
    """
    t = min(max(x * np.float32(1.4426950408889634), np.float32(-126)), np.float32(127))
    whole = np.floor(t + np.float32(0.5))
    f = t - whole
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + ONE
    return p * np.int32((np.int32(whole) + 127) << 23).view(np.float32)


# -------------------------------------------------------------------------------------------------- row by row


@njit(fastmath=SUMS)
def normalise(row, weight, n, eps):
    """n numbers at ``row`` divided by their root mean square, times the n at ``weight``, in place."""
    x, w = f32(row, 0, n), f32(weight, 0, n)
    squares = ZERO
    for i in range(n):
        squares += x[i] * x[i]
    factor = ONE / np.sqrt(squares / np.float32(n) + eps)
    for i in range(n):
        x[i] = x[i] * factor * w[i]


@kernel("11qd")
def rms_norm(a):
    """x, residual, weight, out, sums, rows, n, strides of x and residual, kinds in and out, eps

    residual 0: norm of x; otherwise of x + residual, which goes to ``sums``.
    """
    ints, floats, part, parts = arguments(a)
    x, residual, weight, out, sums, rows, n = ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6]
    stride, residual_stride, kind, out_kind, eps = ints[7], ints[8], ints[9], ints[10], np.float32(floats[11])
    scratch = np.empty(2 * n, np.float32)
    row, other = scratch.ctypes.data, scratch.ctypes.data + 4 * n
    r, o = f32(row, 0, n), f32(other, 0, n)
    begin, end = share_of(rows, part, parts)
    for t in range(begin, end):
        load(row, x, t * stride, n, kind)
        if residual != 0:
            load(other, residual, t * residual_stride, n, kind)
            for i in range(n):
                r[i] += o[i]
            store(row, sums, t * n, n, out_kind)
            load(row, sums, t * n, n, out_kind)  # as rounded: what later layers will see
        load(other, weight, 0, n, kind)
        normalise(row, other, n, eps)
        store(row, out, t * n, n, out_kind)
    scratch[0] = 0


@kernel("16qd")
def rope(a):
    """q, k, positions, cos_sin, weights for q and k, results of q and k, rows, heads of q and k, dim, strides of q and
    k, kinds in and out, eps

    q and k [rows, heads, dim], heads next to each other; cos_sin float32 [P, dim]; weight 0: no norm.
    """
    ints, floats, part, parts = arguments(a)
    positions, cos_sin, rows, dim, kind, out_kind, eps = (ints[2], ints[3], ints[8], ints[11], ints[14], ints[15],
                                                          np.float32(floats[16]))  # fmt: skip
    scratch = np.empty(2 * dim, np.float32)
    row, norm, half = scratch.ctypes.data, scratch.ctypes.data + 4 * dim, dim // 2
    first, second = f32(row, 0, half), f32(row, half, half)
    position = i64(positions, 0, rows)
    begin, end = share_of(rows, part, parts)
    for which in range(2):
        x, weight, out, heads, stride = ints[which], ints[4 + which], ints[6 + which], ints[9 + which], ints[12 + which]
        if weight != 0:
            load(norm, weight, 0, dim, kind)
        for t in range(begin, end):
            at = position[t] * dim
            cos, sin = f32(cos_sin, at, half), f32(cos_sin, at + half, half)
            for head in range(heads):
                load(row, x, t * stride + head * dim, dim, kind)
                if weight != 0:
                    normalise(row, norm, dim, eps)
                for i in range(half):
                    u, v = first[i], second[i]
                    first[i], second[i] = u * cos[i] - v * sin[i], v * cos[i] + u * sin[i]
                store(row, out, (t * heads + head) * dim, dim, out_kind)
    scratch[0] = 0


@kernel("8q")
def activate(a):
    """x, out, rows, n, stride, kinds in and out, gelu

    gelu = 0: x [rows, 2n] -> silu(first half) * second half; gelu = 1: x [rows, n] -> gelu(x) by its tanh formula.
    Both are y / (1 + exp(-z)): z is y itself for silu, and 2 sqrt(2/pi) (y + 0.044715 y^3) for gelu.
    """
    ints, _, part, parts = arguments(a)
    x, out, rows, n, stride, kind, out_kind, gelu = (ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6],
                                                     ints[7])  # fmt: skip
    scratch = np.empty(2 * n, np.float32)
    row, other = scratch.ctypes.data, scratch.ctypes.data + 4 * n
    y, up = f32(row, 0, n), f32(other, 0, n)
    begin, end = share_of(rows, part, parts)
    for t in range(begin, end):
        load(row, x, t * stride, n, kind)
        if gelu:
            for i in range(n):
                y[i] /= ONE + exp(GELU * (y[i] + np.float32(0.044715) * y[i] * y[i] * y[i]))
        else:
            load(other, x, t * stride + n, n, kind)
            for i in range(n):
                y[i] *= up[i] / (ONE + exp(-y[i]))
        store(row, out, t * n, n, out_kind)
    scratch[0] = 0


@kernel("9q")
def write_kv(a):
    """k, v, k_cache, v_cache, slots, rows, n (in pairs of bytes), strides of k and v (likewise)"""
    ints, _, part, parts = arguments(a)
    slots, rows, n = ints[4], ints[5], ints[6]
    begin, end = share_of(rows, part, parts)
    slot = i64(slots, 0, rows)
    for which in range(2):
        new, cache, stride = ints[which], ints[2 + which], ints[7 + which]
        for t in range(begin, end):
            if slot[t] >= 0:
                source, target = bits16(new, t * stride, n), bits16(cache, slot[t] * n, n)
                for i in range(n):
                    target[i] = source[i]
