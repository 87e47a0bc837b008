"""The ops for CPUs against their definitions in float64, and their interface against the reference's."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quire import LLM
from quire.fast import cpu as ops
from quire.fast.cpu import invariant, kernels, launch
from quire.fast.cpu.linear import pack, packed
from quire.reference import ops as reference
from quire.reference.models import build
from quire.reference.models.config import parse_config
from tests.conftest import ROOT
from tests.fast.drawn import DEVICE, DTYPES, Case, assert_close, cases, dense, lay_out, randn

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="what is drawn is on the GPU here")

dtypes = st.sampled_from(DTYPES)
rows = st.integers(0, 70)
widths = st.sampled_from([1, 8, 72, 1000, 1024])
seeds = st.integers(0, 99)
examples = settings(max_examples=40)


def same_as_reference(name: str, dtype: torch.dtype, *args: object) -> None:
    """Compare with the reference op on float64 copies of the tensors."""
    precise = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
    got, expected = getattr(ops, name)(*args), getattr(reference, name)(*precise)
    for g, e in zip(got, expected) if isinstance(got, tuple) else [(got, expected)]:
        assert g.dtype == dtype and g.shape == e.shape
        assert_close(g, e, dtype)


@pytest.mark.parametrize("module", [ops, invariant])
def test_the_interfaces_are_equal(module) -> None:
    assert module.__all__ == reference.__all__
    for name in set(reference.__all__) - {"AttnMeta"}:
        assert inspect.signature(getattr(module, name)) == inspect.signature(getattr(reference, name)), name


def test_triton_is_not_needed() -> None:
    code = "import sys, quire.fast.cpu.invariant; print('triton' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == "False"


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
    assert torch.equal(ops.rms_norm(x.view(rows, 1, width), weight, 1e-5)[:, 0], ops.rms_norm(x, weight, 1e-5))


@given(rows, widths, dtypes, seeds)
@examples
def test_activations(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x = randn(rows, 2 * width, seed=seed, dtype=dtype) * 4
    same_as_reference("silu_and_mul", dtype, x)
    same_as_reference("relu", dtype, x)
    # The reference's gelu_new works in float32 whatever it is given.
    assert_close(ops.gelu_new(x), F.gelu(x.double(), approximate="tanh"), dtype)


@given(
    rows, st.sampled_from([(1, 1), (4, 2), (9, 3)]), st.sampled_from([16, 64, 80, 128]), st.booleans(), dtypes, seeds
)
@examples
def test_qk_norm_rope(
    rows: int, heads: tuple[int, int], dim: int, norm: bool, dtype: torch.dtype, seed: int
) -> None:  # fmt: skip
    qkv = randn(rows, sum(heads) + heads[1], dim, seed=seed, dtype=dtype)
    q, k, _ = qkv.split([*heads, heads[1]], dim=1)
    positions = torch.arange(rows) * 7 % 50
    angles = randn(50, dim // 2, seed=seed).double()
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1).float()
    weights = (randn(dim, seed=seed + 1, dtype=dtype), randn(dim, seed=seed + 2, dtype=dtype)) if norm else (None, None)
    got = ops.qk_norm_rope(q, k, positions, cos_sin, 1e-6, *weights)
    # Rotated in float32, but of values that the norm rounded: compare with that, not with float64 throughout.
    for g, e in zip(got, reference.qk_norm_rope(q, k, positions, cos_sin, 1e-6, *weights)):
        assert g.dtype == dtype and g.is_contiguous()
        assert_close(g, e, dtype)


@pytest.mark.parametrize("pack_it", [False, True])
@pytest.mark.parametrize("module", [ops, invariant])
@given(rows, st.sampled_from([1, 8, 72, 300]), st.sampled_from([1, 5, 40, 300]), st.booleans(), dtypes, seeds)
@examples
def test_linear(
    module, pack_it: bool, rows: int, depth: int, outputs: int, bias: bool, dtype: torch.dtype, seed: int
) -> None:  # fmt: skip
    x = randn(rows, depth, seed=seed, dtype=dtype)
    weight = randn(outputs, depth, seed=seed + 1, dtype=dtype) / depth**0.5
    b = randn(outputs, seed=seed + 2, dtype=dtype) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    if pack_it:
        weight = packed(weight)
    got = module.linear(x, weight, b)
    assert got.dtype == dtype and got.shape == expected.shape
    assert_close(got, expected, dtype)


SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
    "intermediate_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_pack_takes_every_matrix_that_is_multiplied_by_and_only_in_16_bits(tied: bool) -> None:
    if not packed(torch.ones(8, 8, dtype=torch.bfloat16)).is_mkldnn:
        pytest.skip("this processor does not multiply bfloat16")
    config = parse_config({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied} | SHAPE)
    for dtype in (torch.bfloat16, torch.float32):
        model = build(config, ops, dtype=dtype, device="cpu", max_model_len=64)
        for i, place in enumerate(model.places().values()):
            place.copy_(randn(*place.shape, seed=i))
        before = weights(model)
        pack(model)
        after = weights(model)
        matrices = {name for name, weight in before.items() if weight.dim() == 2}
        assert len(matrices) == 1 + 2 * 4
        now_packed = {name for name, weight in after.items() if weight.is_mkldnn}
        assert now_packed == (matrices if dtype == torch.bfloat16 else set())
        for name in now_packed:
            assert torch.equal(after[name].to_dense(), before[name])
        assert not model.embedding.is_mkldnn


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Of the layers, and the last one."""
    found = {f"{i}.{name}": w for i, layer in enumerate(model.layers) for name, w in vars(layer).items()}
    return {name: w for name, w in found.items() if isinstance(w, torch.Tensor)} | {"lm_head": model.lm_head}


def test_embed_and_copy_blocks() -> None:
    same_as_reference("embed", torch.float32, torch.tensor([3, 0, 3]), randn(5, 8, seed=0))
    caches = [(randn(9, 16, 2, 24, seed=i), randn(9, 16, 2, 24, seed=9 + i)) for i in (0, 1)]
    before = [(k.clone(), v.clone()) for k, v in caches]
    source = {2: 5, 7: 1, 3: 5}  # destination -> source
    ops.copy_blocks(caches, *(torch.tensor(list(ids)) for ids in (source.values(), source.keys())))
    for now, old in zip(caches, before):
        for half in range(2):
            for block in range(9):
                assert torch.equal(now[half][block], old[half][source.get(block, block)])


# ----------------------------------------------------------------------------------------------------- attention


def check(case: Case, module=ops) -> None:
    step = lay_out(case)
    scale = case.dim**-0.5
    got = module.attention(step.q, step.k, step.v, *step.caches, step.meta, scale, case.window, case.soft_cap)
    assert got.dtype == case.dtype
    assert_close(got, dense(case, step, scale), case.dtype)
    # The cache holds exactly what it ought to, wherever a sequence has a token.
    for s, (_, length, _) in enumerate(case.seqs):
        p = torch.arange(length)
        for cache, content in zip(step.caches, (step.keys[s], step.values[s])):
            at = step.meta.block_table[s].long()[p // case.block_size], p % case.block_size
            assert torch.equal(cache[at], content)


@pytest.mark.parametrize("module", [ops, invariant])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(longest=300, most=8), dim=st.sampled_from([16, 64, 80, 128]))
@settings(max_examples=25)
@example(case=Case([(1, 1, True)]), dim=64)
@example(case=Case([(1, 100, True), (1, 64, False), (3, 65, True)], share=4), dim=64)
@example(case=Case([(65, 65, True), (1, 30, True), (70, 90, True)], padding=2), dim=64)
@example(case=Case([(40, 90, False), (20, 33, True)], window=20, shared=40), dim=64)
@example(case=Case([(300, 700, True), (600, 600, True), (1, 600, True)], kv_heads=1), dim=16)  # chunks of 256
@example(case=Case([(300, 700, True), (33, 40, True)], kv_heads=1, window=90), dim=16)
def test_attention_equals_dense_softmax(module, dtype: torch.dtype, case: Case, dim: int) -> None:
    check(replace(case, dim=dim, dtype=dtype), module)


@pytest.mark.parametrize("kv_heads", [3, 4])  # odd: heads cannot be halved to share them among threads
def test_any_number_of_threads_gives_the_same_bits(kv_heads: int, monkeypatch) -> None:
    case = Case([(1, 200, True), (5, 70, True), (1, 9, True)], kv_heads=kv_heads, share=2, dim=64)
    x, weight = randn(70, 64, seed=0), randn(64, seed=1)

    def everything() -> list[torch.Tensor]:
        step = lay_out(case)
        return [
            ops.attention(step.q, step.k, step.v, *step.caches, step.meta, 0.2),
            *(cache.nan_to_num() for cache in step.caches),
            *ops.add_rms_norm(x, x + 1, weight, 1e-5),
            *ops.qk_norm_rope(step.q[:7], step.k[:7], torch.arange(7), randn(7, 64, seed=2)),
            ops.silu_and_mul(x),
        ]

    alone = everything()
    before = torch.get_num_threads()
    for module in ("attention", "cache", "norm", "rope", "activation"):
        monkeypatch.setattr(sys.modules[f"quire.fast.cpu.{module}"], "GRAIN", 1)
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(everything(), alone))
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------- numbers and launches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_is_read_exactly(dtype: torch.dtype) -> None:
    bits = torch.arange(1 << 16).to(torch.uint16)
    numbers, wide = bits.view(dtype), torch.empty(1 << 16)
    kernels.load(wide.data_ptr(), bits.data_ptr(), 0, 1 << 16, kernels.KINDS[dtype])
    expected = numbers.float()
    assert torch.equal(wide.isnan(), expected.isnan())
    assert torch.equal(wide.nan_to_num(7), expected.nan_to_num(7))


def test_bfloat16_is_rounded_as_torch_rounds() -> None:
    x = torch.cat([randn(1000, seed=0) * 10.0 ** torch.arange(-40, 38).repeat(13)[:1000], torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-45])])  # fmt: skip
    got = torch.empty(len(x), dtype=torch.bfloat16)
    kernels.store(x.data_ptr(), got.data_ptr(), 0, len(x), kernels.KINDS[torch.bfloat16])
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got.nan_to_num(7).view(torch.int16), x.bfloat16().nan_to_num(7).view(torch.int16))


def test_exp() -> None:
    x = np.concatenate([np.linspace(-87, 88, 5000), np.linspace(-1, 1, 1000)]).astype(np.float32)
    got = np.array([kernels.exp(value) for value in x])
    error = np.abs(got / np.exp(x.astype(np.float64)) - 1)
    assert (error < 2e-7 + 7e-8 * np.abs(x)).all()  # the product with log2(e) has an error of half a unit of its own
    low, high, nan = (kernels.exp(np.float32(value)) for value in (-np.inf, np.inf, np.nan))
    assert 0 < low < 2e-38 and 1e38 < high < np.inf and np.isnan(nan)


def test_without_torchs_openmp_and_without_a_cache_kernels_still_run() -> None:
    """As on a Mac, or where no folder can be written: one thread, compiled anew."""
    code = """
import torch
from quire.fast.cpu import launch, rms_norm
numba_cfunc = launch.cfunc
def cfunc(*args, cache=False, **kwargs):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return numba_cfunc(*args, **kwargs)
launch.cfunc = cfunc
launch.ctypes.CDLL = lambda path: object()
torch.set_num_threads(4)
x = torch.randn(5000, 64)
expected = torch.nn.functional.rms_norm(x, (64,), eps=1e-5)
torch.testing.assert_close(rms_norm(x, torch.ones(64), 1e-5), expected)
print("fine")
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == "fine"
    assert launch.threads_for(10**9, 1) == torch.get_num_threads() and launch.threads_for(5, 10) == 1


def test_an_engine_has_its_loops_before_its_first_request(monkeypatch):
    loaded = set()
    monkeypatch.setattr(launch.Kernel, "load", lambda kernel: loaded.add(kernel.body.__name__))
    LLM("pocket", backend="fast", device="cpu", num_blocks=130)
    assert loaded == {"rms_norm", "rope", "activate", "write_kv", "attend"}
