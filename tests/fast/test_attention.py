"""Paged ragged attention against a dense float64 softmax, over random layouts of the cache, compiled or interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings

from quire.fast.ops import attention, copy_blocks
from tests.fast.drawn import COMPILED, DEVICE, DTYPES, Case, assert_close, cases, dense, lay_out, randn


def check(case: Case) -> None:
    step = lay_out(case)
    scale = case.dim**-0.5
    got = attention(step.q, step.k, step.v, *step.caches, step.meta, scale, case.window, case.soft_cap)
    assert got.dtype == case.dtype
    assert_close(got, dense(case, step, scale), case.dtype)
    # The cache holds exactly what it ought to, wherever a sequence has a token.
    size = case.block_size
    for s, (_, length, _) in enumerate(case.seqs):
        p = torch.arange(length, device=DEVICE)
        for cache, content in zip(step.caches, (step.keys[s], step.values[s])):
            assert torch.equal(cache[step.meta.block_table[s].long()[p // size], p % size], content)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256] if COMPILED else [32])
@given(case=cases())
@settings(max_examples=15 if COMPILED else 8)
@example(case=Case([(1, 1, True)]))
@example(case=Case([(1, 100, True), (1, 64, False), (3, 65, True)], share=4))  # decodes and drafts, several pieces
@example(case=Case([(65, 65, True), (1, 30, True), (70, 90, True)], padding=2))  # own keys, past and own keys
@example(case=Case([(40, 90, False), (20, 33, True)], window=20, shared=40))
def test_equals_dense_softmax(dim: int, dtype: torch.dtype, case: Case) -> None:
    check(replace(case, dim=dim, dtype=dtype))


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_every_head_size(dim: int) -> None:
    check(Case([(1, 40, True), (18, 35, True)], dim=dim, dtype=torch.float16, kv_heads=1))


def test_one_long_context_among_short_ones() -> None:
    """The long one is cut into many pieces, which the last kernel adds up in several rounds."""
    check(Case([(1, 5000 if COMPILED else 400, True)] + [(1, 9, True)] * 3, kv_heads=1, dim=64 if COMPILED else 16))


def test_nothing_is_known_about_the_counts() -> None:
    """``max_q=None``: the op must work out on the device which sequence goes to which kernel."""
    case = Case([(1, 30, True), (30, 30, True), (2, 17, True)], dim=16)
    step = lay_out(case)
    step.meta.max_q = None
    got = attention(step.q, step.k, step.v, *step.caches, step.meta, 0.25)
    assert_close(got, dense(case, step, 0.25), case.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_blocks(dtype: torch.dtype) -> None:
    caches = [(randn(9, 16, 2, 24, seed=i, dtype=dtype), randn(9, 16, 2, 24, seed=9 + i, dtype=dtype)) for i in (0, 1)]
    before = [(k.clone(), v.clone()) for k, v in caches]
    source = {2: 5, 7: 1, 3: 5}  # destination -> source
    copy_blocks(caches, *(torch.tensor(list(ids), device=DEVICE) for ids in (source.values(), source.keys())))
    for now, old in zip(caches, before):
        for half in range(2):
            for block in range(9):
                assert torch.equal(now[half][block], old[half][source.get(block, block)])
    copy_blocks(caches, *(torch.empty(2, 0, dtype=torch.int64, device=DEVICE)))  # nothing to do
