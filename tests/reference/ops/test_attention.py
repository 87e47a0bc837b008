"""Paged ragged attention against a dense float64 softmax, sequence by sequence, over random layouts of the cache."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quire.reference import ops
from quire.reference.ops import AttnMeta, attention, attn_meta, copy_blocks, invariant

ATTENTIONS = {"reference": attention, "invariant": invariant.attention}


@dataclass
class Case:
    """A random step: per sequence (queries, length after the step, whether it writes), and the model's shape."""

    seqs: list[tuple[int, int, bool]]
    kv_heads: int = 2
    share: int = 2
    dim: int = 8
    block_size: int = 4
    window: int | None = None
    soft_cap: float | None = None
    seed: int = 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def seq() -> tuple[int, int, bool]:
        length = draw(st.integers(1, 90))
        n = draw(st.one_of(st.just(1), st.integers(1, length)))
        return n, length, n > 1 or draw(st.booleans())

    return Case(
        seqs=[seq() for _ in range(draw(st.integers(1, 6)))],
        kv_heads=draw(st.integers(1, 3)),
        share=draw(st.sampled_from([1, 2, 3, 7, 9])),
        dim=draw(st.sampled_from([4, 8, 10, 32])),
        block_size=draw(st.sampled_from([1, 3, 4, 16, 64])),
        window=draw(st.one_of(st.none(), st.integers(1, 100))),
        soft_cap=draw(st.one_of(st.none(), st.floats(0.5, 20))),
        seed=draw(st.integers(0, 99)),
    )


@dataclass
class Step:
    """The tensors of a case. keys and values are what each sequence's cache ought to hold, [length, Hk, D] each."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    meta: AttnMeta
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def lay_out(case: Case, dtype: torch.dtype = torch.float32) -> Step:
    """Blocks in random order; every slot that no sequence uses, the null block included, holds NaN."""
    generator = torch.Generator().manual_seed(case.seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    per_seq = [-(-length // case.block_size) for _, length, _ in case.seqs]
    ids = list(range(1, 1 + sum(per_seq) + 3))
    random.Random(case.seed).shuffle(ids)
    tables = [[ids.pop() for _ in range(n)] for n in per_seq]
    shape = (sum(per_seq) + 4, case.block_size, case.kv_heads, case.dim)
    caches = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    keys, values, new_k, new_v = [], [], [], []
    for (n, length, write), table in zip(case.seqs, tables):
        k, v = rand(length, case.kv_heads, case.dim), rand(length, case.kv_heads, case.dim)
        stored = length - n if write else length
        for cache, content in zip(caches, (k, v)):
            for p in range(stored):
                cache[table[p // case.block_size], p % case.block_size] = content[p]
        keys.append(k)
        values.append(v)
        # What must not be written must not matter either.
        new_k.append(k[length - n :] if write else torch.full_like(k[length - n :], torch.nan))
        new_v.append(v[length - n :] if write else torch.full_like(v[length - n :], torch.nan))
    counts, lengths, write = ([s[i] for s in case.seqs] for i in range(3))
    meta = attn_meta(counts, lengths, tables, case.block_size, write=write)
    q = rand(sum(counts), case.kv_heads * case.share, case.dim)
    return Step(q, torch.cat(new_k), torch.cat(new_v), caches, meta, keys, values)


def dense(case: Case, step: Step, scale: float) -> torch.Tensor:
    """The definition, one query and head at a time, in float64."""
    out, row = torch.zeros(step.q.shape, dtype=torch.float64), 0
    for (n, length, _), keys, values in zip(case.seqs, step.keys, step.values):
        for position in range(length - n, length):
            first = 0 if case.window is None else max(0, position - case.window + 1)
            for head in range(step.q.shape[1]):
                k = keys[first : position + 1, head // case.share].double()
                scores = k @ step.q[row, head].double() * scale
                if case.soft_cap is not None:
                    scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
                out[row, head] = scores.softmax(0) @ values[first : position + 1, head // case.share].double()
            row += 1
    return out


@pytest.mark.parametrize("name", ATTENTIONS)
@given(case=cases())
@example(case=Case([(1, 1, True)]))
@example(case=Case([(1, 65, True), (1, 64, False), (64, 64, True), (66, 90, True)], window=64))
def test_equals_dense_softmax(name: str, case: Case) -> None:
    step = lay_out(case)
    scale = 1 / math.sqrt(case.dim)
    got = ATTENTIONS[name](
        step.q, step.k, step.v, *step.caches, step.meta, scale, window=case.window, soft_cap=case.soft_cap
    )
    torch.testing.assert_close(got.double(), dense(case, step, scale), atol=1e-5, rtol=1e-5)
    # And the cache holds exactly what it ought to, wherever a sequence has a token.
    for s, (_, length, _) in enumerate(case.seqs):
        for p in range(length):
            slot = int(step.meta.block_table[s, p // case.block_size]), p % case.block_size
            assert torch.equal(step.caches[0][slot], step.keys[s][p])
            assert torch.equal(step.caches[1][slot], step.values[s][p])


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit(name: str, dtype: torch.dtype) -> None:
    case = Case([(1, 70, True), (5, 33, True), (1, 70, False), (20, 20, True)], dim=16)
    step = lay_out(case, dtype)
    got = ATTENTIONS[name](step.q, step.k, step.v, *step.caches, step.meta, 0.25)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), dense(case, step, 0.25), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_long_chunks_and_many_decodes(name: str) -> None:
    """Beyond the sizes at which queries are cut into pieces and decodes into groups."""
    rng = random.Random(0)
    case = Case([(600, 700, True), (1, 900, True)] + [(1, rng.randrange(1, 120), True) for _ in range(50)], share=1)
    step = lay_out(case)
    got = ATTENTIONS[name](step.q, step.k, step.v, *step.caches, step.meta, 0.3, window=500)
    case.window = 500
    torch.testing.assert_close(got.double(), dense(case, step, 0.3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_padding_rows_are_zero_and_write_nowhere(name: str) -> None:
    case = Case([(2, 9, True), (1, 4, True)])
    step = lay_out(case)
    before = [cache.clone() for cache in step.caches]

    def pad(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.full_like(x[:2], 7.0)])

    step.meta.slot = torch.cat([step.meta.slot, torch.tensor([-1, -1])])
    got = ATTENTIONS[name](pad(step.q), pad(step.k), pad(step.v), *step.caches, step.meta, 0.3)
    assert torch.equal(got[3:], torch.zeros_like(got[3:]))
    torch.testing.assert_close(got[:3].double(), dense(case, step, 0.3), atol=1e-5, rtol=1e-5)
    written = step.meta.slot[:3].tolist()
    for cache, old in zip(step.caches, before):
        for slot in range(case.block_size, cache.shape[0] * case.block_size):  # the null block may take anything
            if slot not in written:
                assert torch.equal(cache.flatten(0, 1)[slot].isnan(), old.flatten(0, 1)[slot].isnan())


def test_attn_meta_lays_out_slots_and_tables() -> None:
    meta = attn_meta([3, 1, 1], [5, 2, 6], [[4, 2], [7], [1, 3]], 4, write=[True, True, False])
    assert meta.cu_q.tolist() == [0, 3, 4, 5]
    assert meta.slot.tolist() == [4 * 4 + 2, 4 * 4 + 3, 2 * 4, 7 * 4 + 1, -1]
    assert meta.block_table.tolist() == [[4, 2], [7, 0], [1, 3]]
    assert meta.seq_len.tolist() == [5, 2, 6]


@given(st.permutations(range(1, 9)), st.integers(0, 4))
def test_copy_blocks(order: list[int], n: int) -> None:
    caches = [(torch.randn(9, 4, 2, 3), torch.randn(9, 4, 2, 3)) for _ in range(2)]
    before = [(k.clone(), v.clone()) for k, v in caches]
    src, dst = order[:n], order[4 : 4 + n]
    copy_blocks(caches, torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64))
    source = dict(zip(dst, src))
    for now, old in zip(caches, before):
        for block in range(9):
            for half in range(2):
                assert torch.equal(now[half][block], old[half][source.get(block, block)])


def test_both_modules_offer_the_same_ops() -> None:
    import inspect

    assert ops.__all__ == invariant.__all__ == sorted(ops.__all__)
    for name in ops.__all__:
        assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(invariant, name))
