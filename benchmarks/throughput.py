"""Offline throughput and single-request speed against Hugging Face transformers, in one run on one machine.

    python -m benchmarks.throughput [--model pocket] [--repeat 3] [--json PATH]

All get the same 64 requests of mixed lengths, greedy, and only wanted tokens count:

    quire        all requests at once, continuous batching over paged KV
    hf-static16  ``generate`` on padded batches of 16; a batch lasts as long as its longest request
    hf-single    ``generate`` one request at a time (on every fourth request: its speed does not depend on the others)

Everything is measured in bfloat16 (the checkpoint's own, and faster in batches where the processor has matrix units)
and in float32 (quire's choice on a CPU: faster for a single request). Ratios are within the same arithmetic; for
``throughput`` also against float32 ``generate``, Hugging Face's faster one. ``throughput-long`` doubles all lengths.

``kv-waste`` is the share of reserved KV slots that hold nothing, averaged over the steps of a run with sequences of
about 300 tokens. ``start-s`` is the time from ``LLM(...)`` to a ready engine, imports done, in a fresh process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.workload import Job, mixed
from quire import LLM, SamplingParams
from quire.report import Row, show, write

DTYPES = ("bfloat16", "float32")
START = """
import sys, time
import quire.llm, quire.reference.models, quire.reference.runner, transformers
from quire import LLM
began = time.perf_counter()
LLM(sys.argv[1])
print(time.perf_counter() - began)
"""


def run_quire(llm: LLM, jobs: list[Job]) -> float:
    """Wanted tokens per second for all jobs at once."""
    llm.reset_prefix_cache()
    params = [SamplingParams(temperature=0, max_tokens=j.output_len, ignore_eos=True, detokenize=False) for j in jobs]
    began = time.perf_counter()
    outputs = llm.generate([j.prompt for j in jobs], params, use_tqdm=False)
    wall = time.perf_counter() - began
    assert [len(o.outputs[0].token_ids) for o in outputs] == [j.output_len for j in jobs]
    return sum(j.output_len for j in jobs) / wall


def load_transformers(path: Path, dtype: str) -> Any:
    """The same checkpoint in transformers, told never to stop early."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def run_transformers(model: Any, jobs: list[Job], batch: int) -> float:
    """Wanted tokens per second for the jobs in left-padded batches."""
    began = time.perf_counter()
    for first in range(0, len(jobs), batch):
        group = jobs[first : first + batch]
        width = max(len(j.prompt) for j in group)
        ids = torch.tensor([[0] * (width - len(j.prompt)) + j.prompt for j in group])
        mask = torch.tensor([[0] * (width - len(j.prompt)) + [1] * len(j.prompt) for j in group])
        new = max(j.output_len for j in group)
        out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new)
        assert out.shape[1] == width + new
    return sum(j.output_len for j in jobs) / (time.perf_counter() - began)


def kv_waste(llm: LLM, vocab_size: int) -> tuple[float, float]:
    """Mean share of reserved but unused slots over the steps of a run, and the mean length of its sequences."""
    jobs = mixed(48, (150, 350), (50, 150), vocab_size, seed=3)
    engine = llm.engine
    for job in jobs:
        params = SamplingParams(temperature=0, max_tokens=job.output_len, ignore_eos=True)
        engine.add_request(job.prompt, params)
    waste, lengths = [], []
    while engine.has_unfinished():
        engine.step()
        stats = engine.stats()
        if stats.blocks_used:
            slots = stats.blocks_used * llm.config.block_size
            waste.append((slots - stats.slots_used) / slots)
            lengths.append(stats.slots_used / stats.num_running)
    return mean(waste), mean(lengths)


def start_seconds(model: str, repeat: int) -> float:
    command = [sys.executable, "-c", START, model]
    return median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        for _ in range(repeat)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()

    figures: dict[str, list[float]] = {}

    def note(name: str, figure: float) -> None:
        figures.setdefault(name, []).append(figure)

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(figures[a], figures[b], strict=True))

    llms = {dtype: LLM(args.model, dtype=dtype) for dtype in DTYPES}
    peers = {dtype: load_transformers(llms[dtype].assets.path, dtype) for dtype in DTYPES}
    vocab_size = llms["float32"].engine.model.vocab_size
    jobs = mixed(args.requests, (16, 128), (16, 128), vocab_size)
    long = mixed(args.requests, (32, 256), (32, 256), vocab_size)
    one = Job(jobs[0].prompt[:64], 128)
    for dtype in DTYPES:
        run_quire(llms[dtype], jobs)
        run_transformers(peers[dtype], jobs[:2], 2)
    for _ in range(args.repeat):
        for dtype in DTYPES:
            note(f"throughput-{dtype}", run_quire(llms[dtype], jobs))
            note(f"hf-static16-{dtype}", run_transformers(peers[dtype], jobs, 16))
            note(f"hf-single-{dtype}", run_transformers(peers[dtype], jobs[::4], 1))
            note(f"throughput-long-{dtype}", run_quire(llms[dtype], long))
            note(f"single-{dtype}", run_quire(llms[dtype], [one]))
            note(f"hf-one-{dtype}", run_transformers(peers[dtype], [one], 1))

    waste, length = kv_waste(llms["float32"], vocab_size)
    against = {
        f"{peer}-{t}": ratio(f"throughput-{t}", f"{peer}-{t}") for t in DTYPES for peer in ("hf-single", "hf-static16")
    }
    bf16, fp32 = DTYPES
    rows = [
        Row(
            "throughput",
            median(figures[f"throughput-{bf16}"]),
            "tok/s, bfloat16",
            {
                "hf-single": against[f"hf-single-{bf16}"],
                "hf-static16": against[f"hf-static16-{bf16}"],
                "hf-single in float32": ratio(f"throughput-{bf16}", f"hf-single-{fp32}"),
            },
        ),
        Row(
            "throughput-float32",
            median(figures[f"throughput-{fp32}"]),
            "tok/s, float32",
            {"hf-single": against[f"hf-single-{fp32}"], "hf-static16": against[f"hf-static16-{fp32}"]},
        ),
        *(Row(f"throughput-long-{t}", median(figures[f"throughput-long-{t}"]), f"tok/s, {t}") for t in DTYPES),
        Row(
            "single",
            median(figures[f"single-{fp32}"]),
            "tok/s, float32",
            {"hf-single": ratio(f"single-{fp32}", f"hf-one-{fp32}")},
        ),
        Row(
            "single-bfloat16",
            median(figures[f"single-{bf16}"]),
            "tok/s, bfloat16",
            {"hf-single": ratio(f"single-{bf16}", f"hf-one-{bf16}")},
        ),
        *(Row(name, median(figures[name]), "tok/s") for t in DTYPES for name in (f"hf-single-{t}", f"hf-static16-{t}")),
        Row("kv-waste", 100 * waste, "%", {"limit-4": 4 / (100 * waste)}),
        Row("kv-waste-length", length, "tokens per sequence"),
        Row("start-s", start_seconds(args.model, args.repeat), "s"),
    ]
    show(rows, f"{args.model}: {args.requests} requests, {sum(j.output_len for j in jobs)} output tokens, CPU")
    if args.json:
        write(args.json, rows, "python -m benchmarks.throughput")


if __name__ == "__main__":
    main()
