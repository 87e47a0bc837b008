"""``quire info [MODEL]``: what a model is and how much of it fits this machine, without loading its weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from quire.cli.flags import add_engine_flags, engine_args
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError

if TYPE_CHECKING:
    from quire.reference.models import ModelConfig

Fact: TypeAlias = "tuple[str, Any, str]"  # name, value, and the value for reading where it does not read well itself


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="zoo name, folder or hub name [pocket]")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    given = engine_args(arguments)
    if arguments.name is not None and given.setdefault("model", arguments.name) != arguments.name:
        raise ConfigError("model", given["model"], f"MODEL is {arguments.name!r}", "Name the model once")
    config = EngineConfig(**given)

    from quire import backend
    from quire.reference.memory import size_kv
    from quire.reference.models import choose_dtype, load_config

    path = backend.model_path(config)
    model, device = load_config(path), backend.device(config)
    dtype = choose_dtype(config.dtype, model, device)
    facts = describe(config, model, path, dtype, device)
    if not arguments.json:
        _print(config.model, facts)  # before the memory is looked at: that may end in an error
    ledger = size_kv(config, model, dtype=dtype, device=device, weights_loaded=False)
    if arguments.json:
        memory = {"kv_blocks": ledger.num_blocks - 1, "kv_tokens": ledger.num_tokens, "kv_bytes": ledger.kv_bytes}
        print(json.dumps({"model": config.model} | {name: value for name, value, _ in facts} | memory))
    else:
        print(ledger)
    return 0


def describe(config: EngineConfig, model: ModelConfig, path: Path, dtype: Any, device: str) -> list[Fact]:
    """What the checkpoint's configuration says, in the order of a page."""
    windows = sorted({w for w in model.windows if w is not None})
    shape = f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} query / {model.num_kv_heads} KV"
    shape += f" heads of {model.head_dim}, feed-forward {model.intermediate_size}"
    length = min(config.max_model_len or model.max_position, model.max_position)
    stored, computed = (str(d).removeprefix("torch.") for d in (model.dtype, dtype))
    return [
        ("path", str(path), ""),
        ("architecture", model.architecture, ""),
        ("shape", shape, ""),
        ("sliding_window", windows, ", ".join(map(str, windows)) or "none"),
        ("vocabulary", model.vocab_size, f"{model.vocab_size:,} tokens"),
        ("parameters", model.num_parameters, f"{model.num_parameters:,}"),
        ("dtype", computed, f"{computed} on {device} (stored as {stored})"),
        ("max_model_len", length, f"{length:,} tokens"),
        ("kv_bytes_per_token", model.kv_bytes_per_token(dtype), f"{model.kv_bytes_per_token(dtype):,}"),
    ]


def _print(title: str, facts: list[Fact]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=title, title_justify="left")
    for name, value, text in facts:
        table.add_row(name.replace("_", " "), text or str(value))
    Console().print(table)
