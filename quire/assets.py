"""What a checkpoint brings besides its weights: tokenizer, default sampling parameters, end-of-sequence ids.

``LLM`` and the server's processes all start from the same ``Assets``, so that a prompt means the same to each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import Any

from quire import backend
from quire.reference.checkpoint import resolve
from quire.reference.config import EngineConfig
from quire.reference.control.errors import CheckpointError, RequestError
from quire.reference.control.params import SamplingParams
from quire.reference.tokenizer import load_tokenizer
from quire.zoo import MODELS


@dataclass(frozen=True)
class Assets:
    """A checkpoint without its weights.

    name             what it is called: its name in the zoo or on the hub, else its folder's
    path             its folder
    eos_token_ids    whatever ends a text, by the checkpoint's configuration or by its tokenizer
    defaults         sampling parameters that its generation_config.json asks for; empty with generation_config="none"
    tokenizer        transformers' tokenizer, or
    tokenizer_error  why there is none: token ids can be completed without it
    """

    name: str
    path: Path
    eos_token_ids: tuple[int, ...]
    defaults: dict[str, Any]
    tokenizer: Any | None
    tokenizer_error: CheckpointError | None

    def get_tokenizer(self) -> Any:
        """The tokenizer. Raises ``CheckpointError`` if the checkpoint has none."""
        if self.tokenizer is None:
            assert self.tokenizer_error is not None
            raise self.tokenizer_error
        return self.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """quire's own defaults with the checkpoint's on top."""
        return SamplingParams(**self.defaults)


def load_assets(config: EngineConfig) -> Assets:
    """Find the checkpoint (it is downloaded if ``config.model`` is a hub name) and read all but its weights."""
    path = backend.model_path(config)
    tokenizer, error = _load_tokenizer(config, path)
    defaults = backend.generation_defaults(path)
    eos = list(defaults.pop("eos_token_ids"))
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        eos.append(tokenizer.eos_token_id)
    if config.generation_config == "none":
        defaults = {}
    try:
        SamplingParams(**defaults)
    except RequestError as wrong:
        raise CheckpointError(
            wrong.field, wrong.value, f"in {path / 'generation_config.json'}: {wrong.problem}",
            f'{wrong.remedy}, or set generation_config="none"',
        ) from None  # fmt: skip
    return Assets(_name(config.model, path), path, tuple(dict.fromkeys(eos)), defaults, tokenizer, error)


def _name(model: str, path: Path) -> str:
    """What was asked for by name keeps that name: the folder of a download is called by its commit."""
    local = model not in MODELS and Path(model).expanduser().is_dir()
    return Path(abspath(path)).name if local else model


def _load_tokenizer(config: EngineConfig, path: Path) -> tuple[Any | None, CheckpointError | None]:
    try:
        if config.tokenizer is not None:
            path = resolve(config.tokenizer, field="tokenizer")
        return load_tokenizer(path, trust_remote_code=config.trust_remote_code), None
    except CheckpointError as error:
        if config.tokenizer is not None or error.__cause__ is not None:
            raise  # one was named, or is there and damaged
        return None, error
