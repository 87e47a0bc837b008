"""Random numbers without state: Philox4x32-10 in NumPy, and the noise that sampling adds to logits.

Philox (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11) scrambles a 128-bit counter
under a 64-bit key. A number is therefore a pure function of *where it is used*, never of how many were drawn before,
so a request draws the same noise alone, in a batch, after a preemption, on either data plane.

The one mapping that everything in quire follows::

    key      = (seed & 0xffffffff, seed >> 32)                      the request's resolved 64-bit seed
    counter  = (vocab_index // 4, position, stream, purpose)        one call yields four words, for four tokens
    word     = vocab_index % 4

``position`` is the index in the sequence of the token that is being chosen (the prompt's first token has 0), ``stream``
tells the siblings of one request apart, and ``purpose`` keeps independent uses apart.
Only 32-bit integer arithmetic and float32 are needed, so that a GPU kernel can repeat it word for word.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

SAMPLE = 0  # Gumbel noise of the target model's sampling; a draft is drawn with the same, so that it agrees
DRAFT = 1  # of a draft that rejection sampling is to judge, which must be independent of the target's
ACCEPT = 2  # the uniform number that decides whether such a draft is accepted

# The largest and the smallest value that ``gumbel`` can take: -log(2^-33) and -log(24 log 2), rounded outwards. A token
# whose score lies more than their difference below the best score can never win.
GUMBEL_MAX = 22.874
GUMBEL_MIN = -2.812

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers of the two halves
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # what the key gains per round (golden ratio, sqrt(3) - 1)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_CHUNK = 1 << 13  # blocks worked on at once: a few uint64 arrays of this length stay in the L2 cache

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> U32:
    """Philox4x32-10. counter [..., 4], key [..., 2] (uint32 values, leading shapes broadcast) -> uint32 [..., 4]."""
    c, k = np.asarray(counter, np.uint64), np.asarray(key, np.uint64)
    shape = np.broadcast_shapes(c.shape[:-1], k.shape[:-1])
    columns = [np.broadcast_to(a[..., i], shape).reshape(-1, 1) for a in (c, k) for i in range(a.shape[-1])]
    return _words(*columns).reshape(*shape, 4)


def _words(c0: U64, c1: U64, c2: U64, c3: U64, k0: U64, k1: U64) -> U32:
    """The generator on six uint64 arrays [N or 1, B or 1] of values below 2^32. Returns uint32 [N, B, 4].

    Works through some rows at a time, so that the arrays stay in the cache. Keys of one column cost next to nothing.
    """
    n, b = np.broadcast_shapes(c0.shape, c1.shape, k0.shape)
    out = np.empty((n, b, 4), np.uint32)
    rows = max(1, _CHUNK // b)
    for i in range(0, n, rows):
        part = slice(i, min(i + rows, n))
        shape = (part.stop - i, b)
        x0, x1, x2, x3 = (np.broadcast_to(c[part] if len(c) > 1 else c, shape).copy() for c in (c0, c1, c2, c3))
        key0, key1 = (k[part].copy() if len(k) > 1 else k.copy() for k in (k0, k1))
        for _ in range(10):
            # A product of two 32-bit numbers has a high and a low half: the high one meets the other lane and the key.
            x0 *= _M0
            x2 *= _M1
            x1 ^= x2 >> _SHIFT
            x1 ^= key0
            x3 ^= x0 >> _SHIFT
            x3 ^= key1
            x0 &= _LOW
            x2 &= _LOW
            x0, x1, x2, x3 = x1, x2, x3, x0
            key0 += _W0
            key0 &= _LOW
            key1 += _W1
            key1 &= _LOW
        for word, x in enumerate((x0, x1, x2, x3)):
            out[part, :, word] = x
    return out


def derive_seed(engine_seed: int, request_number: int) -> int:
    """The 64-bit seed of a request that brought none: a function of the engine's seed and the request's number."""
    text = f"{engine_seed % 2**64}/{request_number}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def uniform(seed: npt.ArrayLike, stream: npt.ArrayLike, position: npt.ArrayLike, purpose: int) -> F32:
    """A number in (0, 1) per position, from the first word there. seed uint64, stream, position [N] -> float32 [N]."""
    s, t, p = (np.asarray(a, np.uint64).reshape(-1, 1) for a in (seed, stream, position))
    words = _words(np.zeros((1, 1), np.uint64), p, t, np.full((1, 1), purpose, np.uint64), s & _LOW, s >> _SHIFT)
    return uniform_from_bits(words[:, 0, 0])


def uniform_from_bits(x: U32) -> F32:
    """u = (x + ½)·2⁻³² clamped below 1, in float32: at least 2⁻³³ and at most 1 − 2⁻²⁴."""
    u = x.astype(np.float32)
    u += np.float32(0.5)
    u *= np.float32(2.0**-32)
    np.minimum(u, np.float32(1 - 2.0**-24), out=u)
    return u


def gumbel_from_bits(x: U32) -> F32:
    """Standard Gumbel noise from random words: u = (x + ½)·2⁻³² clamped below 1, g = −log(−log1p(−u)); all float32.

    Finite at both ends: u is at least 2⁻³³ and at most 1 − 2⁻²⁴. Large g, which decides who wins, comes from small u,
    where float32 is densest. A kernel without log1p takes log(w)·(−u)/(w − 1) with w = 1 − u, and −u where w = 1.
    """
    u = uniform_from_bits(x)
    np.negative(u, out=u)
    np.log1p(u, out=u)
    np.negative(u, out=u)
    np.log(u, out=u)
    np.negative(u, out=u)
    return u


def gumbel(
    seed: npt.ArrayLike, stream: npt.ArrayLike, position: npt.ArrayLike, vocab: npt.ArrayLike, purpose: int = SAMPLE
) -> F32:
    """Noise for single tokens. seed uint64, stream, position and vocab index, all [N] or scalar -> float32 [N].

    One call of Philox per token; for a large share of a vocabulary ``gumbel_rows`` is four times cheaper. Both give
    the same numbers.
    """
    columns = (np.asarray(a, np.uint64).reshape(-1, 1) for a in (seed, stream, position, vocab))
    s, t, p, v = np.broadcast_arrays(*columns)
    words = _words(v >> np.uint64(2), p, t, np.full((1, 1), purpose, np.uint64), s & _LOW, s >> _SHIFT)
    return gumbel_from_bits(np.take_along_axis(words[:, 0], (v & np.uint64(3)).astype(np.intp), 1)[:, 0])


def gumbel_rows(
    seed: npt.ArrayLike, stream: npt.ArrayLike, position: npt.ArrayLike, vocab_size: int, purpose: int = SAMPLE
) -> F32:
    """Noise for whole rows. seed uint64, stream and position, all [R] -> float32 [R, vocab_size]."""
    s, t, p = (np.asarray(a, np.uint64).reshape(-1, 1) for a in (seed, stream, position))
    blocks = np.arange(-(-vocab_size // 4), dtype=np.uint64)[None]
    bits = _words(blocks, p, t, np.full((1, 1), purpose, np.uint64), s & _LOW, s >> _SHIFT)
    return gumbel_from_bits(bits.reshape(len(s), -1)[:, :vocab_size])
