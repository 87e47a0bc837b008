"""``quire bench``: offline throughput on random prompts, all there from the start."""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from quire.cli.flags import add_engine_flags, engine_args


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-prompts", type=int, default=64, help="requests [64]")
    parser.add_argument("--input-len", type=_lengths, default=(16, 256), metavar="N[:M]", help="prompt tokens [16:256]")
    parser.add_argument("--output-len", type=_lengths, default=(16, 128), metavar="N[:M]", help="new tokens [16:128]")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 = greedy [0]")
    parser.add_argument("--workload-seed", type=int, default=0, help="seed of lengths and prompts [0]")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from quire import LLM, SamplingParams

    began = time.perf_counter()
    with LLM(**engine_args(arguments)) as llm:
        start_s = time.perf_counter() - began
        prompts, lengths = _workload(arguments, llm.engine.model.vocab_size)
        params = [
            SamplingParams(max_tokens=n, temperature=arguments.temperature, ignore_eos=True, detokenize=False)
            for n in lengths
        ]
        llm.generate(prompts[0], SamplingParams(max_tokens=4, detokenize=False), use_tqdm=False)  # warm up
        llm.reset_prefix_cache()
        began = time.perf_counter()
        outputs = llm.generate(prompts, params)
        wall = time.perf_counter() - began
    produced = sum(o.metrics.num_generation_tokens for o in outputs)
    rows = _rows(outputs, sum(map(len, prompts)), produced, wall, start_s)
    table = Table("", "value", "unit", title=f"{llm.config.model}: {len(prompts)} requests", title_justify="left")
    for row in rows:
        table.add_row(row["name"], f"{row['value']:,.2f}", row["unit"])
    Console().print(table)
    if arguments.json is not None:
        meta = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "hardware": f"{platform.machine()}, {platform.processor() or platform.system()}",
            "versions": {"python": platform.python_version()},
            "command": "quire bench " + " ".join(sys.argv[2:]),
        }
        arguments.json.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1), encoding="utf-8")
    return 0


def _lengths(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    pair = int(low), int(high or low)
    if not 1 <= pair[0] <= pair[1]:
        raise argparse.ArgumentTypeError("give N or N:M with 1 ≤ N ≤ M")
    return pair


def _workload(arguments: argparse.Namespace, vocab_size: int) -> tuple[list[list[int]], list[int]]:
    """Random token ids of uniformly random lengths, and how many tokens to generate for each."""
    rng = random.Random(arguments.workload_seed)
    inputs = [rng.randint(*arguments.input_len) for _ in range(arguments.num_prompts)]
    prompts = [[rng.randrange(vocab_size) for _ in range(n)] for n in inputs]
    return prompts, [rng.randint(*arguments.output_len) for _ in range(arguments.num_prompts)]


def _rows(outputs: list[Any], asked: int, produced: int, wall: float, start_s: float) -> list[dict[str, Any]]:
    first = sorted(o.metrics.time_to_first_token * 1e3 for o in outputs)
    between = sorted(
        (o.metrics.last_token_time - o.metrics.first_token_time) / (o.metrics.num_generation_tokens - 1) * 1e3
        for o in outputs
        if o.metrics.num_generation_tokens > 1
    )
    figures = [
        ("output", produced / wall, "tok/s"),
        ("total", (asked + produced) / wall, "tok/s"),
        ("requests", len(outputs) / wall, "1/s"),
        ("ttft-median", median(first), "ms"),
        ("ttft-p99", first[int(0.99 * (len(first) - 1))], "ms"),
        ("inter-token-median", median(between) if between else 0.0, "ms"),
        ("inter-token-p99", between[int(0.99 * (len(between) - 1))] if between else 0.0, "ms"),
        ("wall", wall, "s"),
        ("start", start_s, "s"),
    ]
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in figures]
