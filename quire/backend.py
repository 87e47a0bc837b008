"""Which data plane runs: the one place that knows both.

The rest of ``quire`` asks here for an engine and gets the same façade whatever is behind it. torch and the models are
imported only when an engine is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.reference import checkpoint
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError

if TYPE_CHECKING:
    from quire.reference.engine import Engine


# Tokens that cost a step of each plane as much as its fixed part: on CPUs the row free-tokens of benchmarks.speculation
# (24 to 28; the reference takes its time for sequences rather than for their tokens); on GPUs a guess, not measured.
FREE_TOKENS = {"reference": 100.0, "cpu": 28.0, "fast": 200.0}
DRAFT_COST = 0.35  # of a draft model's token, as a share of the target's step on a CPU
# On a GPU a pass takes the time of reading its weights, and that of so many more per layer: 18 µs of short kernels.
LAYER_BYTES = 80e6


def choose(config: EngineConfig, device: str) -> str:
    """The data plane for ``config.backend`` on ``device``: "reference"; "fast" or "cpu", the fast one for NVIDIA GPUs
    or for CPUs. ConfigError if there is none."""
    fast = {"cuda": "fast", "cpu": "cpu"}.get(device.partition(":")[0])
    if fast == "fast" and find_spec("triton") is None:
        if config.backend == "fast":
            raise ConfigError(
                "backend", "fast", "its kernels need triton, which is not installed", "pip install 'quire[fast]'"
            )
        return "reference"
    if config.backend == "fast" and fast is None:
        raise ConfigError(
            "backend", "fast", f"it runs on NVIDIA GPUs and CPUs, and the device is {device!r}",
            'Use backend="auto", which takes the fastest one that is there',
        )  # fmt: skip
    return "reference" if config.backend == "reference" else fast or "reference"


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
    plane: str | None = None,
) -> Engine:
    """Load the model in ``path``, size and allocate its KV cache, and put scheduler and runner together.

    ``tokenizer`` returns the model's; it is called for the first request with structured outputs. None: it is loaded.
    ``plane``: as from ``choose``, unasked whether it can run here: kernels may be interpreted. None: ``choose``.
    """
    where = device(config)
    plane = plane or choose(config, where)
    if config.async_scheduling is None:
        config = replace(config, async_scheduling=plane == "fast")

    from quire.reference.control.scheduler import Scheduler
    from quire.reference.engine import Engine, ModelFacts
    from quire.reference.malloc import keep_freed_memory
    from quire.reference.memory import size_kv
    from quire.reference.trace import Recorder, TraceLines

    if where == "cpu":
        keep_freed_memory()
    runner = load_runner(config, path, plane, where)
    activations = runner.measure_activations(config.max_num_batched_tokens) if plane == "fast" else None
    drafts = config.speculation is not None and config.speculation.model is not None
    sizes = size_kv(
        config,
        runner.model.config,
        dtype=runner.dtype,
        device=where,
        activations=activations,
        draft=runner.proposer.model.config if drafts else None,
    )
    runner.allocate_kv(sizes.num_blocks, sizes.num_host_blocks)
    scheduler = Scheduler(
        config.scheduler(
            speculation=_draft_policy(config, plane, runner),
            max_model_len=runner.model.max_model_len,
            num_blocks=sizes.num_blocks,
            num_host_blocks=sizes.num_host_blocks,
        )
    )
    facts = ModelFacts(
        name=config.model,
        vocab_size=runner.model.config.vocab_size,
        max_model_len=runner.model.max_model_len,
        embedding_size=runner.model.config.embed_size,
        eos_token_ids=eos_token_ids,
    )
    recorder = None
    if config.trace is not None:
        budget = config.max_num_batched_tokens
        about = {"model": config.model, "backend": plane, "device": where, "max_num_batched_tokens": budget}
        lines = TraceLines(
            block_size=config.block_size, num_blocks=sizes.num_blocks, redact=config.trace_redact, about=about
        )
        recorder = Recorder(config.trace, lines)
    verified = None
    if config.verify:
        from quire.verify import Reports, VerifiedRunner

        reports = Reports(config, plane, where)
        runner = verified = VerifiedRunner(runner, share=config.verify, on_divergence=reports)
    return Engine(
        config,
        facts,
        scheduler,
        runner,
        tokenizer=tokenizer or partial(_tokenizer, config),
        recorder=recorder,
        verified=verified,
    )


def load_runner(config: EngineConfig, path: Path, plane: str, device: str) -> Any:
    """The data plane's runner with the model in ``path``; its KV cache is still to be allocated."""
    from quire.reference.models import choose_dtype, load_model

    model = load_model(
        path,
        dtype=config.dtype,
        device=device,
        ops=_ops(plane, config),
        max_model_len=config.max_model_len,
        load_format=config.load_format,
    )
    return _runner(
        plane,
        config,
        model,
        max_num_seqs=config.max_num_seqs,
        max_model_len=model.max_model_len,
        block_size=config.block_size,
        device=device,
        dtype=choose_dtype(config.dtype, model.config, device),
    )


def _ops(plane: str, config: EngineConfig) -> Any:
    """The module of ops that the model is handed."""
    if plane == "fast":
        from quire.fast import ops
        from quire.fast.ops import invariant
    elif plane == "cpu":
        from quire.fast import cpu as ops  # type: ignore[no-redef]
        from quire.fast.cpu import invariant  # type: ignore[no-redef]
    else:
        from quire.reference import ops  # type: ignore[no-redef]
        from quire.reference.ops import invariant  # type: ignore[no-redef]
    return invariant if config.batch_invariant else ops


def _draft_policy(config: EngineConfig, plane: str, runner: Any) -> Any:
    """What the control plane must know of speculation; None without it."""
    from quire.reference.control.speculation import DraftPolicy

    speculation = config.speculation
    if speculation is None:
        return None
    model = speculation.method == "draft_model"
    draft_cost = DRAFT_COST if model else 0.0
    if model and plane == "fast":
        draft, target = (
            c.num_parameters * runner.dtype.itemsize + LAYER_BYTES * c.num_layers
            for c in (runner.proposer.model.config, runner.model.config)
        )
        draft_cost = draft / target
    return DraftPolicy(
        most=speculation.num_speculative_tokens,
        adaptive=speculation.adaptive,
        free_tokens=FREE_TOKENS[plane],
        draft_cost=draft_cost,
        lookahead=model,
        # The fast plane looks prompts up on the device. A step that is verified needs exact lengths.
        ahead=plane == "fast" and speculation.method == "ngram" and bool(config.async_scheduling) and not config.verify,
    )


def _lookup(config: EngineConfig) -> Any:
    """The proposer that looks drafts up; None if there is none, or a draft model in its place."""
    speculation = config.speculation
    if speculation is None or speculation.model is not None:
        return None
    least, most = speculation.prompt_lookup_min, speculation.prompt_lookup_max
    if speculation.method == "suffix":
        from quire.reference.speculation.suffix import Suffix

        return Suffix(least, most)
    from quire.reference.speculation.ngram import NGram

    return NGram(least, most)


def _rejection(config: EngineConfig) -> bool:
    return config.speculation is not None and config.speculation.verification == "rejection"


def _draft_model(config: EngineConfig, target: Any, device: str) -> Any:
    """The model that drafts for ``target``, with its ops, or None. ConfigError if it does not fit."""
    from quire.reference.models import load_model

    if config.speculation is None or config.speculation.model is None:
        return None
    name = config.speculation.model
    model = load_model(
        checkpoint.resolve(name, field="speculative_config.model"),
        dtype=config.dtype,
        device=device,
        ops=target.ops,
        max_model_len=target.max_model_len,
        load_format=config.load_format,
    )
    ours, theirs = target.config.vocab_size, model.config.vocab_size
    if ours != theirs:
        raise ConfigError(
            "speculative_config.model", name, f"it has {theirs} tokens, and the model that it drafts for {ours}",
            "Name a draft model with the same tokenizer",
        )  # fmt: skip
    return model


def _runner(plane: str, config: EngineConfig, model: Any, **settings: Any) -> Any:
    draft = _draft_model(config, model, settings["device"])
    if plane == "fast":
        from quire.fast.runner import ModelRunner

        most = 0 if config.speculation is None else config.speculation.num_speculative_tokens
        return ModelRunner(
            model, enforce_eager=config.enforce_eager, most_drafts=most, proposer=_lookup(config), draft_model=draft,
            rejection=_rejection(config), **settings,
        )  # fmt: skip
    from quire.reference.runner import ModelRunner as ReferenceRunner
    from quire.reference.speculation.draft_model import DraftModel

    if plane == "cpu":
        from quire.fast.cpu.linear import pack
        from quire.fast.cpu.loading import load_kernels

        load_kernels()
        pack(model)
    proposer = _lookup(config)
    if draft is not None:
        sizes = {name: settings[name] for name in ("max_num_seqs", "block_size", "device", "dtype")}
        proposer = DraftModel(draft, rejection=_rejection(config), **sizes)
    # Bookkeeping in NumPy: a CPU would gain nothing from another.
    return ReferenceRunner(model, proposer=proposer, rejection=_rejection(config), **settings)


def _tokenizer(config: EngineConfig) -> Any:
    from quire.assets import load_assets

    return load_assets(config).get_tokenizer()
