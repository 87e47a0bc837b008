"""``ModelConfig``: the shape of a model, read from a Hugging Face config.json and nothing else.

Families spell the same thing differently, and the same family did so differently over the years; this file is where the
spellings end. What quire cannot run is refused here, before a single weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quire.reference.checkpoint import read_json, token_ids
from quire.reference.control.errors import CheckpointError
from quire.reference.models.rope import Rope, parse_rope

DTYPES = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only transformer.

    architecture       Hugging Face class name, the key of the registry
    windows            per layer how many positions a query sees, itself included; None = all
    rope               None for models with learned positions
    embed_size         width of the embedding table where it differs from hidden_size (OPT-350m)
    norm_first         normalise before attention and MLP (all but OPT-350m); final_norm: and once more at the end
    dtype              of the checkpoint, as config.json states it
    eos_token_ids      tokens that end a text, config.json's own (see ``generation_defaults`` for the other file)
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    windows: tuple[int | None, ...]
    rope: Rope | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_first: bool = True
    final_norm: bool = True
    embed_size: int
    tie_word_embeddings: bool
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of K and V that one token occupies, all layers together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize

    @property
    def num_parameters(self) -> int:
        """Weights of the model, tied ones counted once."""
        from quire.reference.models import build  # the registry imports this file

        model = build(self, ops=None, dtype=self.dtype, device="meta", max_model_len=1)
        return sum(place.numel() for place in model.places().values())


def load_config(path: Path) -> ModelConfig:
    """Read ``path/config.json``; raises CheckpointError naming the field that cannot be used."""
    if not path.is_dir():
        raise CheckpointError("model", str(path), "no such folder", "Give the folder that holds config.json")
    return parse_config(read_json(path / "config.json", "Give a folder saved by save_pretrained, or a hub name"))


def parse_config(raw: dict[str, Any]) -> ModelConfig:
    """From the content of config.json."""
    names = raw.get("architectures") or [None]
    parse = FAMILIES.get(names[0])
    if parse is None:
        raise CheckpointError(
            "architectures", names[0], "unsupported architecture", f"Supported: {', '.join(FAMILIES)}"
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(
            "quantization_config",
            method,
            "quantized checkpoints are not supported",
            "Use the checkpoint with 16-bit or 32-bit weights",
        )
    return parse(raw)


def _positive(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(name, value, "config.json must give a positive integer here", "Repair config.json")
    return value


def _choice(raw: dict[str, Any], name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
    value = raw.get(name, default)
    if value not in allowed:
        raise CheckpointError(
            name,
            value,
            f"not supported for {raw['architectures'][0]}",
            f"Use a model with {' or '.join(map(repr, allowed))}",
        )
    return value


def _dtype(raw: dict[str, Any]) -> torch.dtype:
    name = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in DTYPES:
        raise CheckpointError("dtype", name, "unsupported type of weights", f"Supported: {', '.join(DTYPES)}")
    return DTYPES[name]


def _heads(hidden: int, heads: int, kv_heads: int, head_dim: int | None) -> dict[str, Any]:
    if head_dim is None and hidden % heads:
        raise CheckpointError(
            "num_attention_heads", heads, f"does not divide hidden_size={hidden}", "Repair config.json"
        )
    if heads % kv_heads:
        raise CheckpointError(
            "num_key_value_heads", kv_heads, f"does not divide num_attention_heads={heads}", "Repair config.json"
        )
    return {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim or hidden // heads}


def _common(raw: dict[str, Any]) -> dict[str, Any]:
    return {
        "architecture": raw["architectures"][0],
        "vocab_size": _positive(raw, "vocab_size"),
        "dtype": _dtype(raw),
        "eos_token_ids": token_ids(raw.get("eos_token_id")),
        "bos_token_id": raw.get("bos_token_id"),
    }


def _llama(raw: dict[str, Any]) -> ModelConfig:
    """Llama, Mistral, Qwen2 and Qwen3: one decoder, different switches."""
    name = raw["architectures"][0]
    hidden, heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    layers = _positive(raw, "num_hidden_layers")
    bias = bool(raw.get("attention_bias", False)) and name != "MistralForCausalLM"
    head_dim = raw.get("head_dim") or (128 if name == "Qwen3ForCausalLM" else None)  # Qwen3's is not hidden / heads
    rope = parse_rope(raw)
    max_position = _positive(raw, "max_position_embeddings")
    if rope.kind == "yarn":  # Qwen's stretched checkpoints state the length before stretching
        max_position = max(max_position, int(rope.original_max_position * rope.factor))
    return ModelConfig(
        **_common(raw),
        **_heads(hidden, heads, _positive(raw, "num_key_value_heads", heads), head_dim),
        hidden_size=hidden,
        embed_size=hidden,
        num_layers=layers,
        intermediate_size=_positive(raw, "intermediate_size"),
        max_position=max_position,
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        windows=_windows(raw, name, layers),
        rope=rope,
        activation=_choice(raw, "hidden_act", "silu", ("silu",)),
        qkv_bias=bias or name == "Qwen2ForCausalLM",
        o_bias=bias and name != "Qwen2ForCausalLM",
        mlp_bias=bool(raw.get("mlp_bias", False)) and name == "LlamaForCausalLM",
        qk_norm=name == "Qwen3ForCausalLM",
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def _windows(raw: dict[str, Any], name: str, layers: int) -> tuple[int | None, ...]:
    """Per layer the sliding window. Qwen slides only if ``use_sliding_window``, and then only in its later layers."""
    window = raw.get("sliding_window")
    if name == "LlamaForCausalLM" or window is None or (name.startswith("Qwen") and not raw.get("use_sliding_window")):
        return (None,) * layers
    _positive(raw, "sliding_window")
    types = raw.get("layer_types")
    if types is None:
        first = raw.get("max_window_layers", 28) if name.startswith("Qwen") else 0
        return tuple(window if i >= first else None for i in range(layers))
    known = ("full_attention", "sliding_attention")
    if len(types) != layers or any(t not in known for t in types):
        raise CheckpointError(
            "layer_types",
            types,
            f"not a list of {layers} entries out of {', '.join(known)}",
            "Repair config.json or use another model",
        )
    return tuple(window if t == "sliding_attention" else None for t in types)


def _gpt2(raw: dict[str, Any]) -> ModelConfig:
    hidden, heads = _positive(raw, "n_embd"), _positive(raw, "n_head")
    layers = _positive(raw, "n_layer")
    _choice(raw, "scale_attn_weights", True, (True,))
    _choice(raw, "scale_attn_by_inverse_layer_idx", False, (False,))
    _choice(raw, "add_cross_attention", False, (False,))
    return ModelConfig(
        **_common(raw),
        **_heads(hidden, heads, heads, None),
        hidden_size=hidden,
        embed_size=hidden,
        num_layers=layers,
        intermediate_size=_positive(raw, "n_inner", 4 * hidden),
        max_position=_positive(raw, "n_positions", raw.get("n_ctx")),
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        windows=(None,) * layers,
        activation=_choice(raw, "activation_function", "gelu_new", ("gelu_new", "gelu_pytorch_tanh", "relu")),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


def _opt(raw: dict[str, Any]) -> ModelConfig:
    hidden, heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    layers, bias = _positive(raw, "num_hidden_layers"), bool(raw.get("enable_bias", True))
    _choice(raw, "layer_norm_elementwise_affine", True, (True,))
    norm_first = bool(raw.get("do_layer_norm_before", True))
    return ModelConfig(
        **_common(raw),
        **_heads(hidden, heads, heads, None),
        hidden_size=hidden,
        embed_size=_positive(raw, "word_embed_proj_dim", hidden),
        num_layers=layers,
        intermediate_size=_positive(raw, "ffn_dim"),
        max_position=_positive(raw, "max_position_embeddings"),
        norm_eps=1e-5,
        windows=(None,) * layers,
        activation=_choice(raw, "activation_function", "relu", ("relu", "gelu_new")),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        norm_first=norm_first,
        final_norm=norm_first and not raw.get("_remove_final_layer_norm", False),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


FAMILIES: dict[str, Callable[[dict[str, Any]], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _llama,
    "Qwen2ForCausalLM": _llama,
    "Qwen3ForCausalLM": _llama,
    "GPT2LMHeadModel": _gpt2,
    "OPTForCausalLM": _opt,
}
