"""Weights from a checkpoint's safetensors files to their places in a model.

A checkpoint is read tensor by tensor, each copied straight to where the model keeps it (converted on the way if the
dtype differs), so that the model is never in memory twice. Whatever is missing, damaged or left over is an error with
the name of the tensor or file: a model that loads is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.reference.checkpoint import read_json
from quire.reference.control.errors import CheckpointError, ConfigError
from quire.reference.models.config import DTYPES, ModelConfig


def choose_dtype(name: str, config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The dtype to compute in. "auto" is the checkpoint's own, except that 16-bit checkpoints run in float32 on a CPU.

    (CPUs without 16-bit matrix units emulate 16-bit arithmetic, several times slower than float32.)
    """
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else config.dtype
    if name not in DTYPES:
        raise ConfigError("dtype", name, "unknown dtype", f"Choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def random_weights(model: Any) -> None:
    """Fill ``model.places()`` with random numbers, the same each time, for measurements: load_format="dummy".

    Matrices are normal with a deviation of 0.02, as models are initialised; norms multiply by one, biases are zero.
    """
    generator: dict[torch.device, torch.Generator] = {}
    for name, place in model.places().items():
        if place.ndim == 1:
            place.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            seeded = generator.setdefault(place.device, torch.Generator(place.device).manual_seed(0))
            place.normal_(0, 0.02, generator=seeded)


def load_weights(model: Any, path: Path) -> None:
    """Fill ``model.places()`` from the safetensors files in ``path``."""
    places: dict[str, Tensor] = model.places()
    missing = set(places)
    for file, full_name, tensor in _stream(path):
        name = full_name
        for prefix in model.prefixes:
            name = name.removeprefix(prefix)
        if name not in places:
            tied = name == "lm_head.weight" and model.config.tie_word_embeddings  # a copy of the embedding
            if tied or any(name.endswith(buffer) for buffer in model.ignored):
                continue
            raise CheckpointError(
                "tensor",
                full_name,
                f"{file.name} holds a tensor that {model.config.architecture} has no place for",
                "Check that config.json belongs to these weights",
            )
        place, values = places[name], tensor()
        if values.shape != place.shape:
            raise CheckpointError(
                "tensor",
                full_name,
                f"its shape in {file.name} is {tuple(values.shape)}, and config.json asks for {tuple(place.shape)}",
                "Check that config.json belongs to these weights",
            )
        if not values.is_floating_point():
            raise CheckpointError(
                "tensor",
                full_name,
                f"stored as {values.dtype}, which is not floating point",
                "Use the checkpoint with 16-bit or 32-bit weights",
            )
        place.copy_(values)
        missing.discard(name)
    if missing:
        first = sorted(missing)[0]
        hint = (
            "set tie_word_embeddings in config.json if it is the embedding"
            if first == "lm_head.weight"
            else ("download the checkpoint again, or check that config.json belongs to it")
        )
        raise CheckpointError(
            "tensor", first, f"missing from {path} ({len(missing)} tensors are)", f"{hint[0].upper()}{hint[1:]}"
        )


def _stream(path: Path) -> Iterator[tuple[Path, str, Any]]:
    """(file, tensor name, function that reads it) for every tensor in the checkpoint, file by file."""
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                    yield file, name, lambda name=name, shard=shard: shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "file",
                str(file),
                f"not a complete safetensors file ({error})",
                "Download it again; it is probably cut short",
            ) from error


def _files(path: Path) -> list[Path]:
    """The checkpoint's safetensors files: those that the index names, or the single one."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index, "Download it again").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("weight_map", str(index), "missing or empty", "Download the index again")
        files = [path / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise CheckpointError(
                    "shard",
                    str(file),
                    f"missing, and {index.name} names it",
                    "Download the checkpoint again, all of it",
                )
        return files
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    others = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for f in path.glob(pattern))
    problem = f"no model.safetensors in it, only {', '.join(others)}" if others else "no model.safetensors in it"
    raise CheckpointError(
        "model",
        str(path),
        problem,
        "Convert the weights: load them with transformers and call save_pretrained(folder, safe_serialization=True)",
    )
