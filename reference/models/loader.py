"""From a model's name to its weights in place: finding the folder, streaming safetensors, defaults for sampling.

A checkpoint is read tensor by tensor, each copied straight to where the model keeps it (converted on the way if the
dtype differs), so that the model is never in memory twice. Whatever is missing, damaged or left over is an error with
the name of the tensor or file: a model that loads is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.reference.control.errors import CheckpointError, ConfigError
from quire.reference.models.config import DTYPES, ModelConfig, read_json, token_ids
from quire.zoo import MODELS, model_path

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve(model_name: str | Path, revision: str | None = None) -> Path:
    """The folder of a zoo model ("pocket"), of a local path, or of a snapshot downloaded from the Hugging Face hub."""
    name, folder = str(model_name), Path(model_name).expanduser()
    if name in MODELS or folder.is_dir():
        if revision is not None:
            raise ConfigError(
                "revision", revision, f"{name} is on this disk", "Leave it out; it chooses on the hub only"
            )
        return model_path(name) if name in MODELS else folder
    if folder.exists():
        raise CheckpointError("model", name, "this is a file", "Give the folder that holds config.json")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise CheckpointError(
            "model",
            name,
            "no such folder",
            f"Give an existing folder, a hub name such as org/model, or one of {', '.join(MODELS)}",
        )
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # offline, no such repository, gated, disk full: the cause is named, the remedy is ours
        cause = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            "model",
            name,
            "no local folder of this name, not in the zoo, and not available from the Hugging Face hub "
            f"(revision {revision or 'main'}; {type(error).__name__}: {cause})",
            "Check the name and the network; a gated model needs `hf auth login`; offline, give the path of a folder, "
            f"or one of {', '.join(MODELS)}, which need no network",
        ) from error


def choose_dtype(name: str, config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The dtype to compute in. "auto" is the checkpoint's own, except that 16-bit checkpoints run in float32 on a CPU.

    (CPUs without 16-bit matrix units emulate 16-bit arithmetic, several times slower than float32.)
    """
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else config.dtype
    if name not in DTYPES:
        raise ConfigError("dtype", name, "unknown dtype", f"Choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


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


def generation_defaults(path: Path) -> dict[str, Any]:
    """Sampling defaults that a checkpoint's generation_config.json sets, by the names of ``SamplingParams``.

    ``eos_token_ids`` (a list) is always there: from generation_config.json, else from config.json, else empty.
    """
    file = path / "generation_config.json"
    raw = read_json(file, "") if file.is_file() else {}
    names = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
    names["max_new_tokens"] = "max_tokens"
    defaults = {ours: raw[theirs] for theirs, ours in names.items() if raw.get(theirs) is not None}
    if raw.get("do_sample") is False:
        defaults["temperature"] = 0.0  # the checkpoint says so; where it says nothing, sampling is the field's default
    eos = raw.get("eos_token_id")
    if eos is None:
        eos = read_json(path / "config.json", "Give a folder saved by save_pretrained").get("eos_token_id")
    return {**defaults, "eos_token_ids": list(token_ids(eos))}
