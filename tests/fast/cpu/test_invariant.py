"""The invariant ops for CPUs: the same bits for a row alone, among others, as a decode and in a chunk of any size."""

from __future__ import annotations

import pytest
import torch

from quire.fast.cpu import invariant
from quire.fast.cpu.linear import packed
from quire.fast.metadata import attn_meta
from tests.fast.drawn import DEVICE, DTYPES, Case, lay_out, randn

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="what is drawn is on the GPU here")


@pytest.mark.parametrize("pack_it", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_has_the_same_bits_for_any_number_of_rows(dtype: torch.dtype, pack_it: bool) -> None:
    x, weight = randn(300, 512, seed=0, dtype=dtype), randn(200, 512, seed=1, dtype=dtype)
    if pack_it:
        weight = packed(weight)
    everything = invariant.linear(x, weight)
    for start, stop in ((0, 1), (77, 78), (3, 19), (100, 164), (1, 66), (70, 299)):
        assert torch.equal(invariant.linear(x[start:stop], weight), everything[start:stop])


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "gelu_new", "silu_and_mul"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_know_nothing_of_each_other(name: str, dtype: torch.dtype) -> None:
    x, weight = randn(300, 200, seed=0, dtype=dtype), randn(200, seed=1, dtype=dtype)
    more = {"rms_norm": (weight, 1e-5), "layer_norm": (weight, weight, 1e-5)}.get(name, ())
    everything = getattr(invariant, name)(x, *more)
    for start, stop in ((0, 1), (77, 78), (3, 19), (1, 66), (70, 299)):
        assert torch.equal(getattr(invariant, name)(x[start:stop], *more), everything[start:stop])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("window", [None, 100])
def test_attention_has_the_same_bits_in_any_chunk_and_company(dtype: torch.dtype, dim: int, window: int | None) -> None:
    """400 tokens at once, as decodes, in chunks, among 20 others and in blocks of another size."""
    length = 400
    step = lay_out(Case([(length, length, True)], kv_heads=2, share=4, dim=dim, dtype=dtype))
    table = step.meta.block_table[0].tolist()
    whole = invariant.attention(step.q, step.k, step.v, *step.caches, step.meta, 0.2, window=window)
    for n, end in [(1, 1), (1, 15), (1, 16), (1, 17), (1, length), (3, 50), (5, 66), (64, 388), (100, 300), (113, 400)]:
        rows = slice(end - n, end)
        q, k, v = (x[rows] for x in (step.q, step.k, step.v))
        alone = invariant.attention(q, k, v, *step.caches, attn_meta([n], [end], [table], 16), 0.2, window=window)
        assert torch.equal(alone, whole[rows]), (n, end)
    others = lay_out(Case([(1, 17 * i, True) for i in range(1, 20)] + [(70, 150, True)], kv_heads=2, share=4, dim=dim,
                          dtype=dtype))  # fmt: skip
    caches = [torch.cat([a, b]) for a, b in zip(others.caches, step.caches)]
    tables = [*(t.tolist() for t in others.meta.block_table), [block + len(others.caches[0]) for block in table]]
    meta = attn_meta([1] * 19 + [70, 7], [17 * i for i in range(1, 20)] + [150, length], tables, 16)
    q, k, v = (torch.cat([getattr(others, x), getattr(step, x)[-7:]]) for x in "qkv")
    among = invariant.attention(q, k, v, *caches, meta, 0.2, window=window)
    assert torch.equal(among[-7:], whole[-7:])
    larger = [cache[table].reshape(-1, 25, *cache.shape[2:]) for cache in step.caches]  # 400 tokens in blocks of 25
    meta = attn_meta([9], [length], [list(range(16))], 25)
    q, k, v = (getattr(step, x)[-9:] for x in "qkv")
    assert torch.equal(invariant.attention(q, k, v, *larger, meta, 0.2, window=window), whole[-9:])
