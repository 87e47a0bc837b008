"""Philox4x32-10 and the Gumbel noise, word for word those of ``quire.reference.control.philox``.

Two things make them cheap enough to disappear behind reading the logits. The 32 x 32 -> 64-bit products are written
with 64-bit integers, which the compiler turns into one wide multiplication each. And the two logarithms, which cost
more than all the rest, are taken only where they can matter: ``gumbel_bound`` bounds the noise from above with a few
integer operations, and whoever looks for a maximum skips what cannot reach it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Counter and key, uint32 tensors of one shape (the key may be scalar) -> four words of that shape."""
    for _ in tl.static_range(10):
        # A product of two 32-bit numbers has a high and a low half: the high one meets the other lane and the key.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = (p1 & 0xFFFFFFFF).to(tl.uint32)
        c3 = (p0 & 0xFFFFFFFF).to(tl.uint32)
        k0 = ((k0.to(tl.uint64) + 0x9E3779B9) & 0xFFFFFFFF).to(tl.uint32)
        k1 = ((k1.to(tl.uint64) + 0xBB67AE85) & 0xFFFFFFFF).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """(word + ½)·2⁻³², clamped below 1."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)


@triton.jit
def gumbel(word):
    """-log(-log1p(-u)), in float32. Without log1p: log(w)·(-u)/(w - 1) with w = 1 - u, and -u where w is 1."""
    u = uniform(word)
    w = 1.0 - u
    log1p = tl.where(w == 1.0, -u, tl.log(w) * (-u) / (w - 1.0))
    return -tl.log(-log1p)


@triton.jit
def gumbel_bound(word):
    """A number that ``gumbel(word)`` does not exceed: for most words, and a small u, at most 0.07 above it.

    -log1p(-u) is at least u, and for u = 2^e (1 + f) log2(u) is at least e + f, which are the bits of u as a
    fixed-point number. u itself is rounded down to 23 bits: put behind the exponent of 1 they are 1 + u, without the
    slow conversion of an integer. Put behind the exponent of 2^23, the upper 23 bits of the result become a float
    again. 1e-3 pays for roundings, those of the score that it is added to included.
    """
    u = ((word >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0
    bits = u.to(tl.int32, bitcast=True) >> 8
    fixed = (bits | 0x4B000000).to(tl.float32, bitcast=True)  # 2^23 + (e + 127 + f) * 2^15
    return tl.fma(fixed, -0.6931472 / 32768, (127.0 + 256) * 0.6931472 + 1e-3)
