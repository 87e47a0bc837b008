"""The compiled loops of this plane, in one file: numba's cache on disk notices a change of a kernel's own file only.
(After a change of ``launch``, which kernels use too, touch this file.)

Memory is addressed by numbers, as in C: ``f32(address, first, n)`` is an array of the n float32 numbers from number
``first`` on. (Slices of arrays are counted references in numba; counting costs more than a row of 64 numbers.)

Rows are widened to float32 on the way in, computed in float32, and rounded on the way out, whatever their dtype is.
The row in work stays in the processor's first cache, so this costs little, and a kernel is compiled once and not once
per dtype. float16 is only read: what ends in float16 leaves as float32, and torch rounds it.

No result depends on how the work is split, and a row's not on any other row: each is computed by the same
instructions, in the same order, wherever it stands.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import carray, njit

from quire.fast.cpu.launch import arguments, kernel, pointer, prefetch

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
F32, BF16 = 0, 1
TILE = 16  # keys located at once
ZERO, ONE = np.float32(0), np.float32(1)
GELU = np.float32(-2 * math.sqrt(2 / math.pi))
QUERIES = 4  # queries of one sequence that share the work of locating
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


# ----------------------------------------------------------------------------------------------------- attention


@njit(fastmath=SUMS)
def dots(query, scores, first, last, at, shift, dim):
    """scores[j] = query · key j for first <= j < last, key j being at address at[j] + shift; four keys at a time."""
    q, out = f32(query, 0, dim), f32(scores, 0, last)
    j = first
    while j + 4 <= last:
        k0, k1 = f32(at[j] + shift, 0, dim), f32(at[j + 1] + shift, 0, dim)
        k2, k3 = f32(at[j + 2] + shift, 0, dim), f32(at[j + 3] + shift, 0, dim)
        s0 = s1 = s2 = s3 = ZERO
        for d in range(dim):
            s0 += q[d] * k0[d]
            s1 += q[d] * k1[d]
            s2 += q[d] * k2[d]
            s3 += q[d] * k3[d]
        out[j], out[j + 1], out[j + 2], out[j + 3] = s0, s1, s2, s3
        j += 4
    while j < last:
        k0 = f32(at[j] + shift, 0, dim)
        s0 = ZERO
        for d in range(dim):
            s0 += q[d] * k0[d]
        out[j] = s0
        j += 1


@njit(fastmath=SUMS)
def mix(mixed, weights, first, last, at, shift, dim):
    """mixed += weights[j] * value j for first <= j < last; four values at a time."""
    acc, w = f32(mixed, 0, dim), f32(weights, 0, last)
    j = first
    while j + 4 <= last:
        v0, v1 = f32(at[j] + shift, 0, dim), f32(at[j + 1] + shift, 0, dim)
        v2, v3 = f32(at[j + 2] + shift, 0, dim), f32(at[j + 3] + shift, 0, dim)
        w0, w1, w2, w3 = w[j], w[j + 1], w[j + 2], w[j + 3]
        for d in range(dim):
            acc[d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]
        j += 4
    while j < last:
        v0, w0 = f32(at[j] + shift, 0, dim), w[j]
        for d in range(dim):
            acc[d] += w0 * v0[d]
        j += 1


@njit(fastmath=SUMS | {"nnan"})  # without NaN in mind the maximum uses vector units, too
def largest(address, n):
    x = f32(address, 0, n)
    top = x[0]
    for j in range(n):
        top = max(top, x[j])
    return top


@njit(fastmath=SUMS)
def softmax(address, n, soft_cap):
    """Of n scores, in place; each is replaced by soft_cap * tanh(score / soft_cap) first, unless soft_cap is 0."""
    x = f32(address, 0, n)
    if soft_cap > 0:
        for j in range(n):
            x[j] = soft_cap * np.float32(math.tanh(x[j] / soft_cap))
    top = largest(address, n)
    total = ZERO
    for j in range(n):
        x[j] = exp(x[j] - top)
        total += x[j]
    factor = ONE / total
    for j in range(n):
        x[j] *= factor


@njit
def locate(at, tile, cache, table, first, last, stride, shift, n, block_size, kind):
    """at[j] = address of n float32 numbers of position first + j: in the cache itself, or widened into ``tile``."""
    block, offset = first // block_size, first % block_size
    for j in range(last - first):
        row = (table[block] * block_size + offset) * stride + shift
        if kind == F32:
            at[j] = cache + 4 * row
        else:
            at[j] = tile + 4 * j * n
            load(at[j], cache, row, n, kind)
        offset += 1
        if offset == block_size:
            block, offset = block + 1, 0


@njit
def fetch(cache, table, first, last, stride, shift, n, block_size, kind):
    """Have the rows of these positions brought near: the processor cannot guess where a block table leads."""
    width = 4 if kind == F32 else 2
    for p in range(first, last):
        row = (table[p // block_size] * block_size + p % block_size) * stride + shift
        for line in range(0, n * width, 64):
            prefetch(cache + width * row + line)


@kernel("21q2d")
def attend(a):
    """q, k_cache, v_cache, out, cu_q, seq_len, block_table, seqs, blocks per table, kv_heads, share, dim, block_size,
    stride of q, kinds of q, cache and out, window, most, longest, heads at once, scale, soft_cap

    Sequences with more than ``most`` queries are left out. A piece of work is one sequence, QUERIES of its queries and
    ``heads at once`` of its K/V heads; each thread takes a run of pieces of about the same cost.
    """
    ints, floats, part, parts = arguments(a)
    seqs, width, kv_heads, most, heads = ints[7], ints[8], ints[9], ints[18], ints[20]
    cu, lengths = i64(ints[4], 0, seqs + 1), i64(ints[5], 0, seqs)
    rows, dim, longest = heads * ints[10], ints[11], ints[19]
    scratch = np.empty(2 * TILE + TILE * heads * dim + QUERIES * rows * (dim + longest + TILE), np.float32)
    total = 0
    for s in range(seqs):
        n = cu[s + 1] - cu[s]
        total += n * (lengths[s] + TILE) * (kv_heads // heads) if n <= most else 0
    done = 0
    for s in range(seqs):
        n = cu[s + 1] - cu[s]
        if n > most:
            continue
        table = i64(ints[6], s * width, width)
        for begin in range(0, n, QUERIES):
            m = min(QUERIES, n - begin)
            for head in range(0, kv_heads, heads):
                if done * parts // total == part:
                    piece(ints, floats, scratch.ctypes.data, table, cu[s] + begin, m, lengths[s] - n + begin, head)
                done += m * (lengths[s] + TILE)
    scratch[0] = 0


@njit(fastmath=SUMS)
def piece(ints, floats, scratch, table, q_row, m, p0, head):
    """Attention of the m queries from row ``q_row`` on, the first at position p0, over K/V heads from ``head`` on.

    A query row is a query times a head; there are ``rows`` for each query. Each has a line of scores, whose place 0 is
    the first key of the first tile. Tiles begin at multiples of TILE, so that all sums are cut at the same positions
    whatever else is in the piece.
    """
    q, k_cache, v_cache, out, kv_heads, share, dim, block_size, stride = (
        ints[0], ints[1], ints[2], ints[3], ints[9], ints[10], ints[11], ints[12], ints[13])  # fmt: skip
    kind, cache_kind, out_kind, window, longest, heads = ints[14], ints[15], ints[16], ints[17], ints[19], ints[20]
    scale, soft_cap = np.float32(floats[21]), np.float32(floats[22])
    rows, line = heads * share, 4 * (longest + TILE)
    at, tile = i64(scratch, 0, TILE), scratch + 8 * TILE
    queries = tile + 4 * TILE * heads * dim
    scores = queries + 4 * QUERIES * rows * dim
    whole, shift, n = kv_heads * dim, head * dim, heads * dim  # numbers: of a position, before these heads, of these
    first, end = max(0, p0 - window + 1) // TILE * TILE, p0 + m

    for i in range(m):
        load(queries + 4 * i * rows * dim, q, (q_row + i) * stride + shift * share, rows * dim, kind)
    x = f32(queries, 0, m * rows * dim)
    for d in range(len(x)):
        x[d] *= scale
    for t in range(first, end, TILE):
        stop = min(t + TILE, end)
        locate(at, tile, k_cache, table, t, stop, whole, shift, n, block_size, cache_kind)
        following, a, b = (k_cache, stop, min(stop + TILE, end)) if stop < end else (v_cache, first, first + stop - t)
        for r in range(m * rows):
            p = p0 + r // rows
            fetch(following, table, a + (b - a) * r // (m * rows), a + (b - a) * (r + 1) // (m * rows), whole, shift, n,
                  block_size, cache_kind)  # fmt: skip
            dots(queries + 4 * r * dim, scores + r * line + 4 * (t - first), max(0, p - window + 1 - t),
                 min(stop, p + 1) - t, at, 4 * (r % rows // share) * dim, dim)  # fmt: skip
    for r in range(m * rows):
        p = p0 + r // rows
        seen = max(0, p - window + 1)
        softmax(scores + r * line + 4 * (seen - first), p + 1 - seen, soft_cap)
    for d in range(len(x)):
        x[d] = ZERO
    for t in range(first, end, TILE):
        stop = min(t + TILE, end)
        locate(at, tile, v_cache, table, t, stop, whole, shift, n, block_size, cache_kind)
        a, b = stop, min(stop + TILE, end)
        for r in range(m * rows):
            p = p0 + r // rows
            fetch(v_cache, table, a + (b - a) * r // (m * rows), a + (b - a) * (r + 1) // (m * rows), whole, shift, n,
                  block_size, cache_kind)  # fmt: skip
            mix(queries + 4 * r * dim, scores + r * line + 4 * (t - first), max(0, p - window + 1 - t),
                min(stop, p + 1) - t, at, 4 * (r % rows // share) * dim, dim)  # fmt: skip
    for i in range(m):
        store(queries + 4 * i * rows * dim, out, ((q_row + i) * whole + shift) * share, rows * dim, out_kind)
