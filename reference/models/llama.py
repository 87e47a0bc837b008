"""The Llama family: Llama, Mistral, Qwen2 and Qwen3 are one decoder with different switches.

RMS norm before attention and before the feed-forward layer, rotary positions, grouped-query attention, SwiGLU. The
switches come from ``ModelConfig``: sliding windows (Mistral, Qwen), biases on q, k and v (Qwen2), a norm on each head
of q and k (Qwen3).

Weights that read the same input are stored as one matrix (q, k, v; gate, up), so that each is one ``linear``.
``places`` maps the checkpoint's names to their parts of these matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quire.reference.models.config import ModelConfig
from quire.reference.models.rope import cos_sin_table
from quire.reference.ops import AttnMeta


@dataclass
class Layer:
    """Weights of one layer. Matrices are [out, in]; what a family does not have is None."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    window: int | None


class Llama:
    """See ``quire.reference.models`` for the interface. Weights are uninitialised until a loader has filled them."""

    prefixes = ("model.",)
    ignored = ("rotary_emb.inv_freq",)

    def __init__(
        self, config: ModelConfig, ops: ModuleType | Any, *, dtype: torch.dtype, device: Any, max_model_len: int
    ) -> None:
        c = config
        self.config, self.ops, self.max_model_len = c, ops, max_model_len

        def new(*shape: int, when: bool = True) -> Any:
            return torch.empty(shape, dtype=dtype, device=device) if when else None

        q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.embedding = new(c.vocab_size, c.hidden_size)
        self.layers = [
            Layer(
                input_norm=new(c.hidden_size),
                qkv=new(q + 2 * kv, c.hidden_size),
                qkv_bias=new(q + 2 * kv, when=c.qkv_bias),
                q_norm=new(c.head_dim, when=c.qk_norm),
                k_norm=new(c.head_dim, when=c.qk_norm),
                o=new(c.hidden_size, q),
                o_bias=new(c.hidden_size, when=c.o_bias),
                mlp_norm=new(c.hidden_size),
                gate_up=new(2 * c.intermediate_size, c.hidden_size),
                gate_up_bias=new(2 * c.intermediate_size, when=c.mlp_bias),
                down=new(c.hidden_size, c.intermediate_size),
                down_bias=new(c.hidden_size, when=c.mlp_bias),
                window=window,
            )
            for window in c.windows
        ]
        self.norm = new(c.hidden_size)
        self.lm_head = self.embedding if c.tie_word_embeddings else new(c.vocab_size, c.hidden_size)
        assert c.rope is not None
        self.cos_sin = cos_sin_table(c.rope, c.head_dim, max_model_len, device)

    def places(self) -> dict[str, Tensor]:
        """Checkpoint name (without "model.") -> the tensor, or the part of one, that takes its values."""
        c = self.config
        heads = [c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.num_kv_heads * c.head_dim]
        halves = [c.intermediate_size] * 2
        places: dict[str, Tensor | None] = {"embed_tokens.weight": self.embedding, "norm.weight": self.norm}
        if not c.tie_word_embeddings:
            places["lm_head.weight"] = self.lm_head
        for i, layer in enumerate(self.layers):
            at = f"layers.{i}."
            places[at + "input_layernorm.weight"] = layer.input_norm
            places[at + "post_attention_layernorm.weight"] = layer.mlp_norm
            places[at + "self_attn.q_norm.weight"] = layer.q_norm
            places[at + "self_attn.k_norm.weight"] = layer.k_norm
            for kind, qkv, o, gate_up, down in (
                ("weight", layer.qkv, layer.o, layer.gate_up, layer.down),
                ("bias", layer.qkv_bias, layer.o_bias, layer.gate_up_bias, layer.down_bias),
            ):
                if qkv is not None:
                    for name, part in zip("qkv", qkv.split(heads)):
                        places[f"{at}self_attn.{name}_proj.{kind}"] = part
                if gate_up is not None:
                    for name, part in zip(("gate", "up"), gate_up.split(halves)):
                        places[f"{at}mlp.{name}_proj.{kind}"] = part
                places[f"{at}self_attn.o_proj.{kind}"] = o
                places[f"{at}mlp.down_proj.{kind}"] = down
        return {name: place for name, place in places.items() if place is not None}

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
        q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        residual = ops.embed(ids, self.embedding)
        x = ops.rms_norm(residual, self.layers[0].input_norm, c.norm_eps)
        for i, layer in enumerate(self.layers):
            if i > 0:
                x, residual = ops.add_rms_norm(x, residual, layer.input_norm, c.norm_eps)
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias)
            q, k, v = (part.unflatten(1, (-1, c.head_dim)) for part in qkv.split([q_size, kv_size, kv_size], dim=1))
            q, k = ops.qk_norm_rope(
                q, k, positions, self.cos_sin, eps=c.norm_eps, q_weight=layer.q_norm, k_weight=layer.k_norm
            )
            x = ops.attention(q, k, v, *caches[i], meta, scale=c.head_dim**-0.5, window=layer.window)
            if wanted is not None and layer is self.layers[-1]:
                x, residual = x.index_select(0, wanted), residual.index_select(0, wanted)
            x = ops.linear(x.flatten(1), layer.o, layer.o_bias)
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, c.norm_eps)
            x = ops.silu_and_mul(ops.linear(x, layer.gate_up, layer.gate_up_bias))
            x = ops.linear(x, layer.down, layer.down_bias)
        return ops.add_rms_norm(x, residual, self.norm, c.norm_eps)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden_size] -> scores of the next token [R, vocab_size], in the model's dtype."""
        return self.ops.linear(hidden, self.lm_head)
