"""Which data plane runs: the one place that knows both.

The rest of ``quire`` asks here for an engine and gets the same façade whatever is behind it. torch and the models are
imported only when an engine is built.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.reference import checkpoint
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError

if TYPE_CHECKING:
    from quire.reference.engine import Engine


def choose(config: EngineConfig) -> str:
    """The data plane for ``config.backend``. Today there is one, "reference", and "auto" takes it."""
    if config.backend == "fast":
        raise ConfigError(
            "backend", "fast", "this version of quire has no fast data plane yet",
            'Use backend="reference", or "auto", which takes the fastest one that is there',
        )  # fmt: skip
    return "reference"


def model_path(config: EngineConfig) -> Path:
    """The folder of the checkpoint, downloaded if ``config.model`` is a hub name."""
    return checkpoint.resolve(config.model, config.revision)


def generation_defaults(path: Path) -> dict[str, Any]:
    """What the checkpoint's generation config asks for, by the names of ``SamplingParams``, and ``eos_token_ids``."""
    return checkpoint.generation_defaults(path)


def device(config: EngineConfig) -> str:
    """``config.device`` with "auto" resolved; ConfigError if it is not there."""
    import torch

    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=config.device)
    except Exception as error:  # torch raises RuntimeError, AssertionError or NotImplementedError here
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "device", config.device, f"torch cannot use it ({reason})", 'Use "cpu", "cuda" or "auto"'
        ) from None
    return config.device


def build_engine(
    config: EngineConfig,
    path: Path,
    *,
    eos_token_ids: tuple[int, ...] = (),
    tokenizer: Callable[[], Any] | None = None,
) -> Engine:
    """Load the model in ``path``, size and allocate its KV cache, and put scheduler and runner together.

    ``tokenizer`` returns the model's; it is called for the first request with structured outputs. None: it is loaded.
    """
    plane = choose(config)
    where = device(config)

    from quire.reference import ops
    from quire.reference.control.scheduler import Scheduler
    from quire.reference.engine import Engine, ModelFacts
    from quire.reference.malloc import keep_freed_memory
    from quire.reference.memory import size_kv
    from quire.reference.models import choose_dtype, load_model
    from quire.reference.ops import invariant
    from quire.reference.runner import ModelRunner
    from quire.reference.trace import Recorder

    if where == "cpu":
        keep_freed_memory()
    model = load_model(
        path,
        dtype=config.dtype,
        device=where,
        ops=invariant if config.batch_invariant else ops,
        max_model_len=config.max_model_len,
    )
    dtype = choose_dtype(config.dtype, model.config, where)
    sizes = size_kv(config, model.config, dtype=dtype, device=where)
    runner = ModelRunner(
        model,
        max_num_seqs=config.max_num_seqs,
        max_model_len=model.max_model_len,
        block_size=config.block_size,
        device=where,
        dtype=dtype,
    )
    runner.allocate_kv(sizes.num_blocks, sizes.num_host_blocks)
    scheduler = Scheduler(
        config.scheduler(
            max_model_len=model.max_model_len, num_blocks=sizes.num_blocks, num_host_blocks=sizes.num_host_blocks
        )
    )
    facts = ModelFacts(
        name=config.model,
        vocab_size=model.config.vocab_size,
        max_model_len=model.max_model_len,
        embedding_size=model.config.embed_size,
        eos_token_ids=eos_token_ids,
    )
    recorder = None
    if config.trace is not None:
        about = {"model": config.model, "backend": plane, "device": where}
        recorder = Recorder(
            config.trace,
            block_size=config.block_size,
            num_blocks=sizes.num_blocks,
            redact=config.trace_redact,
            about=about,
        )
    return Engine(
        config, facts, scheduler, runner, tokenizer=tokenizer or partial(_tokenizer, config), recorder=recorder
    )


def _tokenizer(config: EngineConfig) -> Any:
    from quire.assets import load_assets

    return load_assets(config).get_tokenizer()
