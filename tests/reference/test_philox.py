"""The random numbers: right by the published vectors, placed by the documented mapping, and Gumbel-distributed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.reference.control import philox

# Random123's tests/kat_vectors, the lines "philox4x32 10": counter, key, result.
VECTORS = """
00000000 00000000 00000000 00000000 00000000 00000000   6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff   408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0   d16cfe09 94fdcceb 5001e420 24126ea1
"""

words = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("line", VECTORS.strip().splitlines())
def test_known_answers(line):
    numbers = [int(word, 16) for word in line.split()]
    assert philox.philox4x32(numbers[:4], numbers[4:6]).tolist() == numbers[6:]


def test_known_answers_in_one_call():
    numbers = np.array([[int(word, 16) for word in line.split()] for line in VECTORS.strip().splitlines()])
    assert philox.philox4x32(numbers[:, :4], numbers[:, 4:6]).tolist() == numbers[:, 6:].tolist()


def slow_philox(counter, key):
    """The generator as the paper writes it, one number at a time in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@given(counter=st.tuples(*[words] * 4), key=st.tuples(words, words))
def test_equals_the_plain_definition(counter, key):
    assert philox.philox4x32(counter, key).tolist() == slow_philox(counter, key)


@given(seed=st.integers(0, 2**64 - 1), stream=words, position=words, vocab=st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_mapping(seed, stream, position, vocab):
    """key = halves of the seed; counter = (vocab // 4, position, stream, purpose); word = vocab % 4."""
    bits = slow_philox((vocab // 4, position, stream, philox.SAMPLE), (seed % 2**32, seed >> 32))[vocab % 4]
    want = philox.gumbel_from_bits(np.array([bits], np.uint32))
    assert philox.gumbel(np.uint64(seed), stream, position, vocab).tolist() == want.tolist()


@given(vocab_size=st.integers(1, 70), rows=st.integers(1, 5), data=st.data())
@settings(max_examples=50)
def test_rows_and_single_tokens_draw_the_same(vocab_size, rows, data):
    seed = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=rows, max_size=rows)), np.uint64)
    stream, position = np.arange(rows), 7 * np.arange(rows)
    whole = philox.gumbel_rows(seed, stream, position, vocab_size)
    assert whole.shape == (rows, vocab_size) and whole.dtype == np.float32
    r, v = np.divmod(np.arange(rows * vocab_size), vocab_size)
    assert philox.gumbel(seed[r], stream[r], position[r], v).tolist() == whole.ravel().tolist()


def test_rows_larger_than_a_chunk():
    """Work is cut into chunks for the cache's sake; the cut must not show."""
    seed = np.arange(3, dtype=np.uint64)
    whole = philox.gumbel_rows(seed, 1, 2, 50_001)
    tail = np.arange(49_000, 50_001)
    for row in range(3):
        assert np.array_equal(whole[row, tail], philox.gumbel(seed[row], 1, 2, tail))


def test_every_part_of_the_key_matters():
    base = {"seed": np.array([5], np.uint64), "stream": 0, "position": 0, "purpose": philox.SAMPLE}
    changed = {"seed": np.array([5 + 2**32], np.uint64), "stream": 1, "position": 1, "purpose": philox.SAMPLE + 1}
    noise = philox.gumbel_rows(vocab_size=64, **base)
    for name, value in changed.items():
        other = philox.gumbel_rows(vocab_size=64, **{**base, name: value})
        assert not np.any(other == noise), name


def test_noise_is_finite_at_both_ends():
    lowest, highest = philox.gumbel_from_bits(np.array([2**32 - 1, 0], np.uint32)).tolist()
    assert math.isclose(highest, 33 * math.log(2), rel_tol=1e-6)
    assert math.isclose(lowest, -math.log(24 * math.log(2)), rel_tol=1e-6)
    assert lowest > philox.GUMBEL_MIN and highest < philox.GUMBEL_MAX


@given(bits=words)
def test_noise_against_float64(bits):
    u = min((bits + 0.5) * 2.0**-32, 1 - 2.0**-24)
    got = float(philox.gumbel_from_bits(np.array([bits], np.uint32))[0])
    # u near 1 is known to 24 bits only, where g changes by up to 0.06 per unit in the last place.
    assert math.isclose(got, -math.log(-math.log1p(-u)), abs_tol=1e-5 if u < 0.99 else 0.07)


def test_noise_is_gumbel_distributed():
    """P(g ≤ x) = exp(−exp(−x)): counts in 20 equally likely bins, chi-square with 19 degrees of freedom."""
    noise = philox.gumbel_rows(np.arange(8, dtype=np.uint64), 0, 3, 25_000).ravel()
    counts = np.bincount(np.minimum((np.exp(-np.exp(-noise.astype(float))) * 20).astype(int), 19), minlength=20)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # one in a thousand; the seeds are fixed
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - math.pi**2 / 6) < 0.03


def test_derived_seeds():
    seeds = [philox.derive_seed(engine, number) for engine in (0, 1, -1, 2**64 - 2) for number in (*range(500), 2**40)]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**64 for s in seeds)
    assert philox.derive_seed(0, 7) == philox.derive_seed(0, 7)
    assert philox.derive_seed(-1, 7) == philox.derive_seed(2**64 - 1, 7)
