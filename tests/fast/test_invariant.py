"""The invariant ops: right, and the same bits for a row alone, among others, as a decode and in a chunk of any size.

The interpreter adds up by NumPy, whose order depends on the shape: bits are compared where kernels are compiled.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quire.fast import ops
from quire.fast.ops import attn_meta, invariant
from tests.fast.drawn import COMPILED, DEVICE, DTYPES, Case, assert_close, cases, dense, lay_out, randn

compiled_only = pytest.mark.skipif(not COMPILED, reason="the interpreter adds in another order")


def attend(step, rows: slice = slice(None), meta=None, **kwargs) -> torch.Tensor:  # type: ignore[no-untyped-def]
    q, k, v = (x[rows] for x in (step.q, step.k, step.v))
    return invariant.attention(q, k, v, *step.caches, meta or step.meta, 0.2, **kwargs)


def test_the_interface_is_the_same() -> None:
    assert invariant.__all__ == ops.__all__


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 80, 128] if COMPILED else [32])
@given(case=cases())
@settings(max_examples=10 if COMPILED else 4)
@example(case=Case([(1, 100, True), (40, 90, True), (3, 65, False)], share=3, window=50))
@example(case=Case([(1, 700, True), (60, 600, True)], kv_heads=1, share=4))  # more than one piece
def test_attention_equals_dense_softmax(dim: int, dtype: torch.dtype, case: Case) -> None:
    case = replace(case, dim=dim, dtype=dtype)
    step = lay_out(case)
    got = attend(step, window=case.window, soft_cap=case.soft_cap)
    assert_close(got, dense(case, step, 0.2), case.dtype)


@given(st.sampled_from([1, 16, 17, 70]), st.sampled_from([8, 72, 300]), st.sampled_from([5, 40]), st.booleans(),
       st.sampled_from(DTYPES))  # fmt: skip
@settings(max_examples=60 if COMPILED else 8)
def test_linear(rows: int, depth: int, outputs: int, bias: bool, dtype: torch.dtype) -> None:
    x, weight = randn(rows, depth, seed=0, dtype=dtype), randn(outputs, depth, seed=1, dtype=dtype) / depth**0.5
    b = randn(outputs, seed=2, dtype=dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert_close(invariant.linear(x, weight, b), expected, dtype)


@compiled_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_has_the_same_bits_for_any_number_of_rows(dtype: torch.dtype) -> None:
    x, weight = randn(2000, 4096, seed=0, dtype=dtype), randn(1000, 4096, seed=1, dtype=dtype)
    everything = invariant.linear(x, weight)
    for start, stop in ((0, 1), (777, 778), (3, 19), (100, 164), (1, 66), (700, 1999)):
        assert torch.equal(invariant.linear(x[start:stop], weight), everything[start:stop])


@compiled_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 80, 128])
@pytest.mark.parametrize("window", [None, 300])
def test_attention_has_the_same_bits_in_any_chunk_and_company(dtype: torch.dtype, dim: int, window: int | None) -> None:
    """1,300 tokens at once, as decodes, in chunks and among 20 others: every query has the same bits."""
    length = 1300
    case = Case([(length, length, True)], kv_heads=2, share=4, dim=dim, dtype=dtype)
    step = lay_out(case)
    table = step.meta.block_table[0].tolist()
    whole = attend(step, window=window)
    for n, end in [(1, 1), (1, 511), (1, 512), (1, 513), (1, 1025), (1, length), (3, 514), (4, length), (5, 600),
                   (9, 516), (16, 1030), (64, 1088), (100, 1000), (513, length)]:  # fmt: skip
        rows = slice(end - n, end)
        alone = attn_meta([n], [end], [table], 16, device=DEVICE)
        assert torch.equal(attend(step, rows, alone, window=window), whole[rows]), (n, end)
    others = lay_out(Case([(1, 17 * i, True) for i in range(1, 20)] + [(200, 450, True)], kv_heads=2, share=4, dim=dim,
                          dtype=dtype))  # fmt: skip
    caches = [torch.cat([a, b]) for a, b in zip(others.caches, step.caches)]
    shifted = [block + len(others.caches[0]) for block in table]
    counts, lengths = [1] * 19 + [200, 7], [17 * i for i in range(1, 20)] + [450, length]
    tables = [t.tolist() for t in others.meta.block_table]
    meta = attn_meta(counts, lengths, [*tables, shifted], 16, device=DEVICE)
    q, k, v = (torch.cat([getattr(others, x), getattr(step, x)[-7:]]) for x in "qkv")
    among = invariant.attention(q, k, v, *caches, meta, 0.2, window=window)
    assert torch.equal(among[-7:], whole[-7:])
