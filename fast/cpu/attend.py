"""The compiled loop of attention: queries meet keys and values through the block table.

Of a piece of work, ``piece``: all scores of each query row first, then each row's softmax, then the mix of values. The
helpers take addresses, and ``at``, the addresses of the tile's keys or values as float32 (``locate``).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from quire.fast.cpu.kernels import F32, ONE, SUMS, ZERO, exp, f32, i64, load, store
from quire.fast.cpu.launch import arguments, kernel, prefetch

TILE = 16  # keys located at once
QUERIES = 4  # queries of one sequence that share the work of locating


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


@njit(fastmath=SUMS | {"nnan"})  # a maximum that need not look out for NaN uses vector units
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
