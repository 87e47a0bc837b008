"""``quire info [MODEL]``: what a model is and how much of it fits this machine, without loading its weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from quire.cli.flags import add_engine_flags, engine_args
from quire.reference.config import EngineConfig


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="MODEL", help="zoo name, folder or hub name [pocket]")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    given = engine_args(arguments)
    if arguments.name is not None:
        given["model"] = arguments.name
    facts = describe(EngineConfig.from_kwargs(**given))
    if arguments.json:
        print(json.dumps({name: value for name, value, _ in facts}))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=str(facts[0][1]), title_justify="left")
    for name, value, text in facts[1:]:
        table.add_row(name.replace("_", " "), text or str(value))
    Console().print(table)
    return 0


def describe(config: EngineConfig) -> list[tuple[str, Any, str]]:
    """(name, value, the value for reading, or "" where it reads well itself), in the order of a page."""
    from quire import backend
    from quire.reference.models import choose_dtype, load_config

    path = backend.model_path(config)
    model = load_config(path)
    device = backend.device(config)
    dtype = choose_dtype(config.dtype, model, device)
    per_token = model.kv_bytes_per_token(dtype)
    weights = model.num_parameters * dtype.itemsize
    sizes = backend.size_kv(config, model, dtype=dtype, device=device)
    length = min(config.max_model_len or model.max_position, model.max_position)
    tokens = (sizes.num_blocks - 1) * config.block_size
    windows = {w for w in model.windows if w is not None}
    shape = f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} query / {model.num_kv_heads} KV"
    shape += f" heads of {model.head_dim}, feed-forward {model.intermediate_size}"
    return [
        ("model", config.model, ""),
        ("path", str(path), ""),
        ("architecture", model.architecture, ""),
        ("shape", shape, ""),
        ("sliding_window", max(windows, default=None), "" if windows else "none"),
        ("vocabulary", model.vocab_size, f"{model.vocab_size:,} tokens"),
        ("parameters", model.num_parameters, f"{model.num_parameters:,}"),
        ("checkpoint_dtype", str(model.dtype).removeprefix("torch."), ""),
        ("compute_dtype", str(dtype).removeprefix("torch."), f"{str(dtype).removeprefix('torch.')} on {device}"),
        ("weight_bytes", weights, _bytes(weights)),
        ("max_model_len", length, f"{length:,} tokens"),
        ("kv_bytes_per_token", per_token, _bytes(per_token)),
        ("kv_blocks", sizes.num_blocks - 1, f"{sizes.num_blocks - 1:,} of {config.block_size} tokens"),
        ("kv_tokens", tokens, f"{tokens:,}, or {tokens / length:,.1f} sequences of full length"),
        ("kv_bytes", tokens * per_token, _bytes(tokens * per_token)),
        ("host_blocks", sizes.num_host_blocks, f"{sizes.num_host_blocks:,} (swap space)"),
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.2f} {unit}"
