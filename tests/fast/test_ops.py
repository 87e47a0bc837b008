"""The small ops against their definitions in float64, and the interface of the fast plane against the reference's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quire.fast import ops
from quire.fast.ops.linear import few_rows, gemv
from quire.reference import ops as reference
from tests.fast.drawn import COMPILED, DEVICE, DTYPES, assert_close, randn

dtypes = st.sampled_from(DTYPES)
rows = st.integers(0, 70 if COMPILED else 3)
widths = st.sampled_from([1, 8, 72, 1000, 1024, 4096] if COMPILED else [1, 8, 72, 260])
seeds = st.integers(0, 99)
examples = settings(max_examples=100 if COMPILED else 12)


def same_as_reference(name: str, dtype: torch.dtype, *args: object, **kwargs: object) -> None:
    """Compare with the reference op on float64 copies of the tensors."""

    def precise(x: object) -> object:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    got = getattr(ops, name)(*args, **kwargs)
    expected = getattr(reference, name)(*map(precise, args), **{k: precise(v) for k, v in kwargs.items()})
    for g, e in zip(got, expected) if isinstance(got, tuple) else [(got, expected)]:
        assert g.dtype == dtype and g.shape == e.shape
        assert_close(g, e, dtype)


def test_the_interfaces_are_equal() -> None:
    assert ops.__all__ == reference.__all__
    for name in set(ops.__all__) - {"AttnMeta"}:
        assert inspect.signature(getattr(ops, name)) == inspect.signature(getattr(reference, name)), name
    ours, theirs = ([f.name for f in dataclasses.fields(module.AttnMeta)] for module in (ops, reference))
    assert ours[: len(theirs)] == theirs, "the reference's fields first, in its order: either plane reads the other's"


def test_attn_meta_equals_the_references() -> None:
    arguments = [3, 1, 1], [5, 2, 6], [[4, 2], [7], [1, 3]], 4
    ours, theirs = (module.attn_meta(*arguments, write=[True, True, False]) for module in (ops, reference))
    for field in ("cu_q", "seq_len", "block_table", "slot"):
        assert getattr(ours, field).tolist() == getattr(theirs, field).tolist()
    assert ours.max_q == 3


@given(rows, widths, dtypes, seeds)
@examples
def test_norms(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, residual = (randn(rows, width, seed=seed + i, dtype=dtype) for i in (0, 1))
    weight, bias = (randn(width, seed=seed + i, dtype=dtype) for i in (2, 3))
    same_as_reference("rms_norm", dtype, x, weight, 1e-5)
    same_as_reference("add_rms_norm", dtype, x, residual, weight, 1e-5)
    same_as_reference("layer_norm", dtype, x, weight, bias, 1e-5)
    strided = torch.cat([x, residual], dim=1)[:, :width]
    assert torch.equal(ops.rms_norm(strided, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))


@given(rows, widths, dtypes, seeds)
@examples
def test_activations(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x = randn(rows, 2 * width, seed=seed, dtype=dtype) * 4
    same_as_reference("silu_and_mul", dtype, x)
    same_as_reference("relu", dtype, x)
    # The reference's gelu_new works in float32 whatever it is given.
    expected = F.gelu(x.double(), approximate="tanh")
    assert_close(ops.gelu_new(x), expected, dtype)


@given(
    rows, st.sampled_from([(1, 1), (4, 2), (9, 3)]), st.sampled_from([16, 64, 80, 128]), st.booleans(), dtypes, seeds
)
@examples
def test_qk_norm_rope(
    rows: int, heads: tuple[int, int], dim: int, norm: bool, dtype: torch.dtype, seed: int
) -> None:  # fmt: skip
    qkv = randn(rows, sum(heads) + heads[1], dim, seed=seed, dtype=dtype)
    q, k, _ = qkv.split([*heads, heads[1]], dim=1)
    positions = torch.arange(rows, device=DEVICE) * 7 % 50
    angles = randn(50, dim // 2, seed=seed).double()
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    weights = (randn(dim, seed=seed + 1, dtype=dtype), randn(dim, seed=seed + 2, dtype=dtype)) if norm else (None, None)
    got = ops.qk_norm_rope(q, k, positions, cos_sin, 1e-6, *weights)
    # Rotated in float32, but of values that the norm rounded: compare with that, not with float64 throughout.
    expected = reference.qk_norm_rope(q, k, positions, cos_sin, 1e-6, *weights)
    for g, e in zip(got, expected):
        assert g.dtype == dtype and g.is_contiguous()
        assert_close(g, e, dtype)


@pytest.mark.parametrize("f", [ops.linear, gemv])
@given(st.sampled_from([1, 8, 64, 1500]), st.integers(1, 9), st.booleans(), dtypes, seeds)
@examples
def test_linear(
    f: Callable[..., torch.Tensor], depth: int, outputs: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:  # fmt: skip
    x, weight = randn(1, depth, seed=seed, dtype=dtype), randn(outputs, depth, seed=seed + 1, dtype=dtype) / depth**0.5
    b = randn(outputs, seed=seed + 2, dtype=dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert_close(f(x, weight, b), expected, dtype)


@pytest.mark.parametrize("f", [ops.linear, few_rows])
@given(st.integers(2, 8), st.sampled_from([8, 64, 1500]), st.sampled_from([5, 70, 16385]), st.booleans(), seeds)
@example(4, 512, 48, True, 0)  # whole tiles, small and large: loads without masks
@example(3, 128, 16384, False, 0)
@settings(max_examples=50 if COMPILED else 4)
def test_linear_of_a_few_rows(
    f: Callable[..., torch.Tensor], rows: int, depth: int, outputs: int, bias: bool, seed: int
) -> None:  # fmt: skip
    dtype = torch.bfloat16
    x, weight = randn(rows, depth, seed=seed, dtype=dtype), randn(outputs, depth, seed=seed + 1, dtype=dtype)
    weight /= depth**0.5
    b = randn(outputs, seed=seed + 2, dtype=dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert_close(f(x, weight, b), expected, dtype)


def test_embed_and_linear_of_many_rows() -> None:
    same_as_reference("embed", torch.float32, torch.tensor([3, 0, 3], device=DEVICE), randn(5, 8, seed=0))
    same_as_reference("linear", torch.float32, randn(9, 8, seed=0), randn(5, 8, seed=1))
