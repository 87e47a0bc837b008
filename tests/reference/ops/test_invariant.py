"""The batch-invariant ops, bit by bit: a row's result is the same alone, among others, and in a chunk of any size."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.reference.ops import invariant as ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = 70
few = settings(max_examples=settings.default.max_examples // 10)  # each example is many comparisons


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"], autouse=True)
def threads(request: pytest.FixtureRequest):
    """The claim holds for any number of threads (not between different numbers)."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def rows(width: int, dtype: torch.dtype, seed: int, count: int = ROWS) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def assert_rows_independent(op, *inputs: torch.Tensor, seed: int) -> None:
    """Every op result on a random choice of rows, one row included, equals those rows of the result on all."""
    rng = random.Random(seed)
    everything = op(*inputs)
    everything = everything if isinstance(everything, tuple) else (everything,)
    for count in (1, 1, 2, rng.randrange(3, 16), rng.randrange(16, ROWS)):
        chosen = torch.tensor(rng.sample(range(ROWS), count))
        some = op(*(x[chosen] for x in inputs))
        for part, whole in zip(some if isinstance(some, tuple) else (some,), everything):
            assert torch.equal(part, whole[chosen])


widths = st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 256, 1000]))
seeds = st.integers(0, 99)
per_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@per_dtype
@given(k=widths, n=widths, bias=st.booleans(), seed=seeds)
@few
def test_linear(dtype: torch.dtype, k: int, n: int, bias: bool, seed: int) -> None:
    weight = rows(k, dtype, seed + 1, count=n)
    b = weight[:, 0].clone() if bias else None
    assert_rows_independent(lambda x: ops.linear(x, weight, b), rows(k, dtype, seed), seed=seed)


@per_dtype
@given(width=widths, seed=seeds)
@few
def test_norms_activations_and_rope(dtype: torch.dtype, width: int, seed: int) -> None:
    x, y, twice = rows(width, dtype, seed), rows(width, dtype, seed + 1), rows(2 * width, dtype, seed + 2)
    weight, bias = rows(width, dtype, seed + 3, count=2)
    assert_rows_independent(lambda x: ops.rms_norm(x, weight, 1e-6), x, seed=seed)
    assert_rows_independent(lambda x, y: ops.add_rms_norm(x, y, weight, 1e-6), x, y, seed=seed)
    assert_rows_independent(lambda x: ops.layer_norm(x, weight, bias, 1e-6), x, seed=seed)
    for op in (ops.silu_and_mul, ops.gelu_new, ops.relu):
        assert_rows_independent(op, twice, seed=seed)

    table, head = rows(2 * width, torch.float32, seed + 4), rows(2 * width, dtype, seed + 5, count=2)

    def rope(q, k, positions):
        return ops.qk_norm_rope(q, k, positions, table, q_weight=head[0], k_weight=head[1])

    q = rows(6 * width, dtype, seed + 6).view(ROWS, 3, 2 * width)
    assert_rows_independent(rope, q, twice.view(ROWS, 1, 2 * width), torch.arange(ROWS), seed=seed)


class Sequence:
    """One sequence's queries, keys and values; ``run`` computes attention for it, chunk by chunk, among neighbours."""

    def __init__(self, length: int, heads: tuple[int, int], dim: int, dtype: torch.dtype, seed: int) -> None:
        self.heads, self.dim, self.length = heads, dim, length
        self.q = rows(heads[0] * dim, dtype, seed, count=length).view(length, heads[0], dim)
        self.k = rows(heads[1] * dim, dtype, seed + 1, count=length).view(length, heads[1], dim)
        self.v = rows(heads[1] * dim, dtype, seed + 2, count=length).view(length, heads[1], dim)


def run(
    seqs: list[Sequence], chunks: list[list[int]], block_size: int, seed: int, window: int | None
) -> list[torch.Tensor]:
    """Each sequence in its own chunk sizes, all of them in the same steps, blocks in random order."""
    first = seqs[0]
    per_seq = [-(-s.length // block_size) for s in seqs]
    ids = list(range(1, 1 + sum(per_seq)))
    random.Random(seed).shuffle(ids)
    tables = [[ids.pop() for _ in range(n)] for n in per_seq]
    shape = (1 + sum(per_seq), block_size, first.heads[1], first.dim)
    caches = torch.full(shape, torch.nan, dtype=first.q.dtype), torch.full(shape, torch.nan, dtype=first.q.dtype)
    out: list[list[torch.Tensor]] = [[] for _ in seqs]
    done = [0] * len(seqs)
    for step in range(max(map(len, chunks))):
        active = [i for i in range(len(seqs)) if step < len(chunks[i])]
        counts = [chunks[i][step] for i in active]
        parts = [slice(done[i], done[i] + n) for i, n in zip(active, counts)]
        meta = ops.attn_meta(counts, [p.stop for p in parts], [tables[i] for i in active], block_size)
        q, k, v = (torch.cat([getattr(seqs[i], x)[p] for i, p in zip(active, parts)]) for x in "qkv")
        result = ops.attention(q, k, v, *caches, meta, scale=0.2, window=window)
        for i, part in zip(active, result.split(counts)):
            out[i].append(part)
            done[i] += len(part)
    return [torch.cat(parts) for parts in out]


@st.composite
def splits(draw: st.DrawFn, total: int) -> list[int]:
    sizes = []
    while total:
        sizes.append(min(total, draw(st.sampled_from([1, 1, 2, 3, 17, 64, 200]))))
        total -= sizes[-1]
    return sizes


@per_dtype
@given(data=st.data())
@few
def test_attention(dtype: torch.dtype, data: st.DataObject) -> None:
    kv_heads, share = data.draw(st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 1), (1, 7), (1, 9)]))
    dim, window = data.draw(st.sampled_from([4, 10, 32])), data.draw(st.sampled_from([None, None, 1, 20, 70]))
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=5))
    seqs = [Sequence(n, (kv_heads * share, kv_heads), dim, dtype, seed=i) for i, n in enumerate(lengths)]
    alone = [run([s], [[s.length]], 16, 0, window)[0] for s in seqs]
    chunks = [data.draw(splits(n)) for n in lengths]
    together = run(seqs, chunks, data.draw(st.sampled_from([1, 4, 16, 48])), 1, window)
    for one, among in zip(alone, together):
        assert torch.equal(one, among)


def test_one_decode_among_sixty_four() -> None:
    seqs = [Sequence(100 + 3 * i, (8, 4), 32, torch.float32, seed=i) for i in range(64)]
    chunks = [[s.length - 2, 1, 1] for s in seqs]
    together = run(seqs, chunks, 16, 1, None)
    for i in (0, 31, 63):
        assert torch.equal(run([seqs[i]], [[seqs[i].length]], 8, 2, None)[0], together[i])
