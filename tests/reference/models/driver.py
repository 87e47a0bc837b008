"""What the model tests share: tiny random checkpoints made by transformers, and a paged driver for quire's models."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from quire.reference import ops as reference_ops
from quire.reference.models import Model, load_model

VOCAB = 99
DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40}
GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 160, "initializer_range": 0.2}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "word_embed_proj_dim": 48,
    "init_std": 0.2,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama2": LlamaConfig(**(DECODER | {"num_key_value_heads": 4})),
    "llama3": LlamaConfig(**DECODER, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama-linear-biases": LlamaConfig(
        **DECODER,
        rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
        attention_bias=True,
        mlp_bias=True,
        head_dim=16,
    ),
    "mistral-window": MistralConfig(**DECODER, sliding_window=7),
    "qwen2": Qwen2Config(**DECODER, tie_word_embeddings=True),
    "qwen2-yarn-window": Qwen2Config(
        **DECODER, rope_parameters=YARN, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**DECODER, head_dim=20),
    "qwen3-layer-types": Qwen3Config(
        **DECODER,
        head_dim=16,
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        attention_bias=True,
    ),
    "gpt2": GPT2Config(**GPT2),
    "opt": OPTConfig(**OPT),
    "opt-norm-after-narrow": OPTConfig(**(OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False})),
    "opt-no-bias": OPTConfig(**OPT, enable_bias=False, tie_word_embeddings=False),
}


def hf_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model of CONFIGS[name], seeded, with every bias and norm away from its trivial start."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(model: Any, folder: Path, **kwargs: Any) -> Path:
    model.save_pretrained(folder, **kwargs)
    return folder


class Paged:
    """Drives ``model.forward`` over paged sequences whose blocks are handed out in shuffled order."""

    def __init__(self, model: Model, block_size: int = 4, num_blocks: int = 400, seed: int = 0) -> None:
        self.model, self.block_size = model, block_size
        self.free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self.free)
        c, dtype = model.config, next(iter(model.places().values())).dtype
        shape = (num_blocks, block_size, c.num_kv_heads, c.head_dim)
        self.caches = [
            (torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
            for _ in range(c.num_layers)
        ]
        self.tables: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}

    def step(self, work: list[tuple[int, list[int]]], last_only: bool = False) -> list[torch.Tensor]:
        """Run each (sequence, its next tokens); -> per sequence the logits [n, vocab] of these tokens.

        ``last_only``: the model is told that only the last tokens' are wanted, [1, vocab].
        """
        ids, positions, counts = [], [], []
        for seq, tokens in work:
            table, start = self.tables.setdefault(seq, []), self.lengths.get(seq, 0)
            self.lengths[seq] = start + len(tokens)
            while len(table) * self.block_size < self.lengths[seq]:
                table.append(self.free.pop())
            ids += tokens
            positions += range(start, start + len(tokens))
            counts.append(len(tokens))
        seqs = [seq for seq, _ in work]
        meta = reference_ops.attn_meta(
            counts, [self.lengths[s] for s in seqs], [self.tables[s] for s in seqs], self.block_size
        )
        with torch.inference_mode():
            wanted = meta.cu_q[1:] - 1 if last_only else None
            hidden = self.model.forward(torch.tensor(ids), torch.tensor(positions), self.caches, meta, wanted)
            return list(self.model.logits(hidden).split([1] * len(counts) if last_only else counts))


def load(folder: Path, **kwargs: Any) -> Model:
    return load_model(folder, **({"ops": reference_ops} | kwargs))
