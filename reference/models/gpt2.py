"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm with bias, a plain two-matrix MLP.

Its checkpoints store the matrices [in, out]. Ours are [out, in] like everybody's; the loader writes through a
transposed view, so that nothing is copied twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quire.reference.models.config import ModelConfig
from quire.reference.ops import AttnMeta


@dataclass
class Layer:
    """Weights of one layer; matrices are [out, in]."""

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    o: Tensor
    o_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class GPT2:
    """See ``quire.reference.models`` for the interface. Weights are uninitialised until a loader has filled them."""

    prefixes = ("transformer.",)
    ignored = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored as a buffer by old versions

    def __init__(
        self, config: ModelConfig, ops: ModuleType | Any, *, dtype: torch.dtype, device: Any, max_model_len: int
    ) -> None:
        c = config
        self.config, self.ops, self.max_model_len = c, ops, max_model_len

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        h, wide = c.hidden_size, c.intermediate_size
        self.embedding = new(c.vocab_size, h)
        self.positions = new(c.max_position, h)
        self.layers = [
            Layer(
                new(h),
                new(h),
                new(3 * h, h),
                new(3 * h),
                new(h, h),
                new(h),
                new(h),
                new(h),
                new(wide, h),
                new(wide),
                new(h, wide),
                new(h),
            )
            for _ in range(c.num_layers)
        ]
        self.norm, self.norm_bias = new(h), new(h)
        self.lm_head = self.embedding if c.tie_word_embeddings else new(c.vocab_size, h)

    def places(self) -> dict[str, Tensor]:
        """Checkpoint name (without "transformer.") -> the tensor that takes its values."""
        places = {
            "wte.weight": self.embedding,
            "wpe.weight": self.positions,
            "ln_f.weight": self.norm,
            "ln_f.bias": self.norm_bias,
        }
        if not self.config.tie_word_embeddings:
            places["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            for name, weight, bias in (
                ("ln_1", layer.norm1, layer.norm1_bias),
                ("attn.c_attn", layer.qkv.t(), layer.qkv_bias),
                ("attn.c_proj", layer.o.t(), layer.o_bias),
                ("ln_2", layer.norm2, layer.norm2_bias),
                ("mlp.c_fc", layer.up.t(), layer.up_bias),
                ("mlp.c_proj", layer.down.t(), layer.down_bias),
            ):
                places[f"h.{i}.{name}.weight"] = weight
                places[f"h.{i}.{name}.bias"] = bias
        return places

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        meta: AttnMeta,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """ids and positions [T] -> hidden states after the final norm [T, hidden_size]; fills this step's K/V.

        With ``wanted`` [R]: those of these tokens, [R, hidden_size].
        """
        c, ops = self.config, self.ops
        act = ops.relu if c.activation == "relu" else ops.gelu_new
        x = ops.embed(ids, self.embedding) + ops.embed(positions, self.positions)
        for layer, cache in zip(self.layers, caches):
            y = ops.layer_norm(x, layer.norm1, layer.norm1_bias, c.norm_eps)
            q, k, v = ops.linear(y, layer.qkv, layer.qkv_bias).unflatten(1, (3, c.num_heads, c.head_dim)).unbind(1)
            y = ops.attention(q, k, v, *cache, meta, scale=c.head_dim**-0.5)
            if wanted is not None and layer is self.layers[-1]:
                x, y = x.index_select(0, wanted), y.index_select(0, wanted)
            x = x + ops.linear(y.flatten(1), layer.o, layer.o_bias)
            y = ops.layer_norm(x, layer.norm2, layer.norm2_bias, c.norm_eps)
            x = x + ops.linear(act(ops.linear(y, layer.up, layer.up_bias)), layer.down, layer.down_bias)
        return ops.layer_norm(x, self.norm, self.norm_bias, c.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden_size] -> scores of the next token [R, vocab_size], in the model's dtype."""
        return self.ops.linear(hidden, self.lm_head)
