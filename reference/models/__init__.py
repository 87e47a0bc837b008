"""Models: one file per architecture family, written once against the ops that are handed to them.

A model has

    config, max_model_len, ops
    forward(ids [T], positions [T], caches, meta, wanted) -> hidden [T, embed_size], after the final norm
    logits(hidden [R, embed_size]) -> [R, vocab_size], in the dtype of its weights
    places() -> checkpoint name to the tensor (or part of one) that takes its values

where ``caches`` is one pair of K and V tensors per layer, [num_blocks, block_size, kv_heads, head_dim]. ``wanted`` (int
[R], or None for all) are the tokens whose hidden states are asked for, and only these are returned. For the others all
that counts is their K and V, so behind its attention the last layer leaves them out: of a prompt that is a large part
of a layer's work. Models are plain classes that hold tensors; call them under ``torch.inference_mode()``.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from quire.reference.checkpoint import resolve
from quire.reference.control.errors import CheckpointError, ConfigError
from quire.reference.models.config import ModelConfig, load_config
from quire.reference.models.gpt2 import GPT2
from quire.reference.models.llama import Llama
from quire.reference.models.loader import choose_dtype, load_weights, random_weights
from quire.reference.models.opt import OPT
from quire.reference.ops import AttnMeta

__all__ = [
    "REGISTRY",
    "CheckpointError",
    "Model",
    "ModelConfig",
    "build",
    "choose_dtype",
    "load_config",
    "load_model",
]


class Model(Protocol):
    """What the runner needs of a model."""

    config: ModelConfig
    max_model_len: int
    ops: Any

    def places(self) -> dict[str, Tensor]: ...
    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        meta: AttnMeta,
        wanted: Tensor | None = None,
    ) -> Tensor: ...
    def logits(self, hidden: Tensor) -> Tensor: ...


REGISTRY: dict[str, Any] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Llama,
    "GPT2LMHeadModel": GPT2,
    "OPTForCausalLM": OPT,
}


def build(
    config: ModelConfig, ops: ModuleType | Any, *, dtype: torch.dtype, device: torch.device | str, max_model_len: int
) -> Model:
    """The model of ``config`` with uninitialised weights."""
    return REGISTRY[config.architecture](config, ops, dtype=dtype, device=device, max_model_len=max_model_len)


def load_model(
    path_or_name: str | Path,
    *,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    ops: ModuleType | Any,
    revision: str | None = None,
    max_model_len: int | None = None,
    load_format: str = "auto",
) -> Model:
    """Find, check and load a model.

    ``ops`` is ``quire.reference.ops``, its ``invariant`` twin or another module with the same names. ``max_model_len``
    is the longest sequence to be served, None = what the checkpoint was made for. ``load_format="dummy"`` needs no
    weights: they are random. Raises CheckpointError or ConfigError.
    """
    path = resolve(path_or_name, revision)
    config = load_config(path)
    if max_model_len is not None and max_model_len > config.max_position:
        raise ConfigError(
            "max_model_len",
            max_model_len,
            f"the model's positions end at {config.max_position}",
            f"Give at most {config.max_position}",
        )
    model = build(
        config,
        ops,
        dtype=choose_dtype(dtype, config, device),
        device=device,
        max_model_len=max_model_len or config.max_position,
    )
    with torch.inference_mode():
        if load_format == "dummy":
            random_weights(model)
        else:
            load_weights(model, path)
    return model
