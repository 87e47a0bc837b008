"""OPT (Zhang et al. 2022): GPT-3's shape with ReLU and learned positions that start at row 2 of their table.

Its 350M member is the odd one: it normalises after attention and MLP instead of before, has no final norm, and its
embedding is narrower than the model, with a projection on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quire.reference.models.config import ModelConfig
from quire.reference.ops import AttnMeta

POSITION_OFFSET = 2  # rows 0 and 1 of the position table belonged to padding


@dataclass
class Layer:
    """Weights of one layer; matrices are [out, in], biases None where the checkpoint has none."""

    norm1: Tensor
    norm1_bias: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    norm2: Tensor
    norm2_bias: Tensor
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class OPT:
    """See ``quire.reference.models`` for the interface. Weights are uninitialised until a loader has filled them."""

    prefixes = ("model.decoder.", "decoder.")
    ignored = ()

    def __init__(
        self, config: ModelConfig, ops: ModuleType | Any, *, dtype: torch.dtype, device: Any, max_model_len: int
    ) -> None:
        c = config
        self.config, self.ops, self.max_model_len = c, ops, max_model_len

        def new(*shape: int, when: bool = True) -> Any:
            return torch.empty(shape, dtype=dtype, device=device) if when else None

        h, wide, narrow = c.hidden_size, c.intermediate_size, c.embed_size
        self.embedding = new(c.vocab_size, narrow)
        self.positions = new(c.max_position + POSITION_OFFSET, h)
        self.project_in = new(h, narrow, when=narrow != h)
        self.project_out = new(narrow, h, when=narrow != h)
        self.layers = [
            Layer(
                norm1=new(h),
                norm1_bias=new(h),
                qkv=new(3 * h, h),
                qkv_bias=new(3 * h, when=c.qkv_bias),
                o=new(h, h),
                o_bias=new(h, when=c.o_bias),
                norm2=new(h),
                norm2_bias=new(h),
                up=new(wide, h),
                up_bias=new(wide, when=c.mlp_bias),
                down=new(h, wide),
                down_bias=new(h, when=c.mlp_bias),
            )
            for _ in range(c.num_layers)
        ]
        self.norm = new(h, when=c.final_norm)
        self.norm_bias = new(h, when=c.final_norm)
        self.lm_head = self.embedding if c.tie_word_embeddings else new(c.vocab_size, narrow)

    def places(self) -> dict[str, Tensor]:
        """Checkpoint name (without "model.decoder.") -> the tensor, or the part of one, that takes its values."""
        places: dict[str, Tensor | None] = {
            "embed_tokens.weight": self.embedding,
            "embed_positions.weight": self.positions,
            "project_in.weight": self.project_in,
            "project_out.weight": self.project_out,
            "final_layer_norm.weight": self.norm,
            "final_layer_norm.bias": self.norm_bias,
        }
        if not self.config.tie_word_embeddings:
            places["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            at = f"layers.{i}."
            for kind, norm1, qkv, o, norm2, up, down in (
                ("weight", layer.norm1, layer.qkv, layer.o, layer.norm2, layer.up, layer.down),
                (
                    "bias",
                    layer.norm1_bias,
                    layer.qkv_bias,
                    layer.o_bias,
                    layer.norm2_bias,
                    layer.up_bias,
                    layer.down_bias,
                ),
            ):
                if qkv is not None:
                    for name, part in zip("qkv", qkv.chunk(3)):
                        places[f"{at}self_attn.{name}_proj.{kind}"] = part
                places[f"{at}self_attn.out_proj.{kind}"] = o
                places[f"{at}self_attn_layer_norm.{kind}"] = norm1
                places[f"{at}fc1.{kind}"] = up
                places[f"{at}fc2.{kind}"] = down
                places[f"{at}final_layer_norm.{kind}"] = norm2
        return {name: place for name, place in places.items() if place is not None}

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        meta: AttnMeta,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """ids and positions [T] -> hidden states [T, embed_size]; fills this step's K/V.

        With ``wanted`` [R]: those of these tokens, [R, embed_size].
        """
        c, ops = self.config, self.ops
        act = ops.relu if c.activation == "relu" else ops.gelu_new
        x = ops.embed(ids, self.embedding)
        if self.project_in is not None:
            x = ops.linear(x, self.project_in)
        x = x + ops.embed(positions + POSITION_OFFSET, self.positions)
        for layer, cache in zip(self.layers, caches):
            y = ops.layer_norm(x, layer.norm1, layer.norm1_bias, c.norm_eps) if c.norm_first else x
            q, k, v = ops.linear(y, layer.qkv, layer.qkv_bias).unflatten(1, (3, c.num_heads, c.head_dim)).unbind(1)
            y = ops.attention(q, k, v, *cache, meta, scale=c.head_dim**-0.5)
            if wanted is not None and layer is self.layers[-1]:
                x, y = x.index_select(0, wanted), y.index_select(0, wanted)
            x = x + ops.linear(y.flatten(1), layer.o, layer.o_bias)
            if not c.norm_first:
                x = ops.layer_norm(x, layer.norm1, layer.norm1_bias, c.norm_eps)
            y = ops.layer_norm(x, layer.norm2, layer.norm2_bias, c.norm_eps) if c.norm_first else x
            x = x + ops.linear(act(ops.linear(y, layer.up, layer.up_bias)), layer.down, layer.down_bias)
            if not c.norm_first:
                x = ops.layer_norm(x, layer.norm2, layer.norm2_bias, c.norm_eps)
        if self.norm is not None:
            x = ops.layer_norm(x, self.norm, self.norm_bias, c.norm_eps)
        return x if self.project_out is None else ops.linear(x, self.project_out)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, embed_size] -> scores of the next token [R, vocab_size], in the model's dtype."""
        return self.ops.linear(hidden, self.lm_head)
