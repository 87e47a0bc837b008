"""The small ops against their formulas, or against the library that defined them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from quire.reference import ops
from quire.reference.models.rope import cos_sin_table, parse_rope
from quire.reference.ops import invariant

both = pytest.mark.parametrize("ops", [ops, invariant], ids=["reference", "invariant"])
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, all options": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
}


@both
@given(t=st.integers(0, 40), k=st.integers(1, 70), n=st.integers(1, 70), bias=st.booleans())
def test_linear(ops, t: int, k: int, n: int, bias: bool) -> None:
    x, weight, b = torch.randn(t, k), torch.randn(n, k), torch.randn(n) if bias else None
    expected = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    torch.testing.assert_close(ops.linear(x, weight, b).double(), expected, atol=1e-4, rtol=1e-4)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_llamas(ops, dtype: torch.dtype) -> None:
    norm = LlamaRMSNorm(40, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x, residual = torch.randn(7, 40).to(dtype), torch.randn(7, 40).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(ops.rms_norm(x, norm.weight, 1e-5), norm(x))
        normed, new = ops.add_rms_norm(x, residual, norm.weight, 1e-5)
        assert torch.equal(new, x + residual)
        torch.testing.assert_close(normed, norm(x + residual))


@both
def test_activations_embed_and_layer_norm(ops) -> None:
    x = torch.randn(5, 24) * 3
    torch.testing.assert_close(ops.gelu_new(x), ACT2FN["gelu_new"](x))
    assert torch.equal(ops.relu(x), x.clamp(min=0))
    torch.testing.assert_close(ops.silu_and_mul(x), torch.nn.functional.silu(x[:, :12]) * x[:, 12:])
    assert torch.equal(ops.embed(torch.tensor([3, 0, 3]), x), x[[3, 0, 3]])
    weight, bias = torch.randn(24), torch.randn(24)
    y = x.double()
    expected = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight + bias
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, 1e-5).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ROPES)
def test_rope_is_transformers(name: str) -> None:
    raw = {"max_position_embeddings": 256, "rope_parameters": ROPES[name]}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, **raw)
    table = cos_sin_table(parse_rope(raw), 16, 256, "cpu")
    q, k, positions = torch.randn(50, 4, 16), torch.randn(50, 2, 16), torch.randint(0, 256, (50,))
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for mine, theirs in zip(ops.qk_norm_rope(q, k, positions, table), expected):
        torch.testing.assert_close(mine, theirs[0].transpose(0, 1), atol=1e-5, rtol=1e-5)


def test_heads_are_normed_before_they_are_turned() -> None:
    q, k, positions = torch.randn(6, 4, 8), torch.randn(6, 2, 8), torch.arange(6)
    table, qw, kw = cos_sin_table(parse_rope({}), 8, 6, "cpu"), torch.randn(8), torch.randn(8)
    by_hand = ops.qk_norm_rope(ops.rms_norm(q, qw, 1e-3), ops.rms_norm(k, kw, 1e-3), positions, table)
    fused = ops.qk_norm_rope(q, k, positions, table, eps=1e-3, q_weight=qw, k_weight=kw)
    assert torch.equal(fused[0], by_hand[0]) and torch.equal(fused[1], by_hand[1])
