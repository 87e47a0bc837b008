"""A checkpoint's folder: finding it, and what of it is read without torch.

The server's API processes need a checkpoint's tokenizer and defaults, and neither its weights nor torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from quire.reference.control.errors import CheckpointError, ConfigError
from quire.zoo import MODELS, model_path

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve(model_name: str | Path, revision: str | None = None, *, field: str = "model") -> Path:
    """The folder of a zoo model ("pocket"), of a local path, or of a snapshot downloaded from the Hugging Face hub.

    ``field`` is the argument that the name was given for, and what errors call it.
    """
    name, folder = str(model_name), Path(model_name).expanduser()
    if not name:
        raise CheckpointError(field, name, "no name", f"Give a folder, a hub name, or one of {', '.join(MODELS)}")
    if name in MODELS or folder.is_dir():
        if revision is not None:
            raise ConfigError(
                "revision", revision, f"{name} is on this disk", "Leave it out; it chooses on the hub only"
            )
        return model_path(name) if name in MODELS else folder
    if folder.exists():
        raise CheckpointError(field, name, "this is a file", "Give the folder that holds config.json")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name):
        raise CheckpointError(
            field,
            name,
            "no such folder",
            f"Give an existing folder, a hub name such as org/model, or one of {', '.join(MODELS)}",
        )
    return _download(name, revision, field)


def _download(name: str, revision: str | None, field: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # offline, no such repository, gated, disk full: the cause is named, the remedy is ours
        cause = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            field,
            name,
            "no local folder of this name, not in the zoo, and not available from the Hugging Face hub "
            f"(revision {revision or 'main'}; {type(error).__name__}: {cause})",
            "Check the name and the network; a gated model needs `hf auth login`; offline, give the path of a folder, "
            f"or one of {', '.join(MODELS)}, which need no network",
        ) from error


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in ``file``; a missing or broken file is a CheckpointError with ``remedy``."""
    if not file.is_file():
        raise CheckpointError("model", str(file.parent), f"there is no {file.name} in it", remedy)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(file.name, str(file), f"not readable as JSON ({error})", "Download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(file.name, str(file), "not a JSON object", "Download it again")
    return value


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


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """End-of-text ids come as one integer or as a list."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) for token in ids):
        raise CheckpointError(
            "eos_token_id", value, "neither a token id nor a list of them", "Repair the checkpoint's config.json and "
            "generation_config.json",
        )  # fmt: skip
    return tuple(ids)
