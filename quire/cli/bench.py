"""``quire bench``: offline throughput on random prompts, all there from the start."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from statistics import median
from typing import Any

from quire.cli.flags import add_engine_flags, engine_args
from quire.reference.control.errors import RequestError
from quire.report import Row, show, write


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-prompts", type=_count, metavar="N", default=64, help="requests [64]")
    parser.add_argument("--input-len", type=_lengths, default=(16, 256), metavar="N[:M]", help="prompt tokens [16:256]")
    parser.add_argument("--output-len", type=_lengths, default=(16, 128), metavar="N[:M]", help="new tokens [16:128]")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="FLOAT", help="0 = greedy [0]")
    parser.add_argument("--workload-seed", type=int, default=0, metavar="INT", help="seed of lengths and prompts [0]")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures to this file")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    from quire import LLM, SamplingParams

    if arguments.json is not None and not arguments.json.parent.is_dir():  # better known before than after the run
        raise RequestError("--json", str(arguments.json), "its folder does not exist", "Name a file in one that does")
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
    drafted = sum(o.metrics.num_draft_tokens for o in outputs)
    if drafted:
        rows.append(Row("drafts", drafted / produced, "per output token"))
        rows.append(Row("accepted", sum(o.metrics.num_accepted_tokens for o in outputs) / drafted, "share of drafts"))
    show(rows, f"{llm.config.model}: {len(prompts)} requests")
    if arguments.json is not None:
        write(arguments.json, rows, "quire")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("give an integer of at least 1")
    return int(text)


def _lengths(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    pair = _count(low), _count(high or low)
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError("give N or N:M with 1 ≤ N ≤ M")
    return pair


def _workload(arguments: argparse.Namespace, vocab_size: int) -> tuple[list[list[int]], list[int]]:
    """Random token ids of uniformly random lengths, and how many tokens to generate for each."""
    rng = random.Random(arguments.workload_seed)
    inputs = [rng.randint(*arguments.input_len) for _ in range(arguments.num_prompts)]
    prompts = [[rng.randrange(vocab_size) for _ in range(n)] for n in inputs]
    return prompts, [rng.randint(*arguments.output_len) for _ in range(arguments.num_prompts)]


def _rows(outputs: list[Any], asked: int, produced: int, wall: float, start_s: float) -> list[Row]:
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
        ("ttft-p99", _p99(first), "ms"),
        ("inter-token-median", median(between) if between else 0.0, "ms"),
        ("inter-token-p99", _p99(between) if between else 0.0, "ms"),
        ("wall", wall, "s"),
        ("start", start_s, "s"),
    ]
    return [Row(name, value, unit) for name, value, unit in figures]


def _p99(ordered: list[float]) -> float:
    """The smallest value that at least 99% of them do not exceed."""
    return ordered[-(-99 * len(ordered) // 100) - 1]
