"""Each idea switched on and off: the figures under the traces of docs/concepts, on the embedded model.

    python -m benchmarks.concepts [--only paging,chunked] [--repeat 5] [--json PATH]

    kv-cache/N      ms for the next token behind N tokens, from the cache; against computing all N again
    paging          output tokens per second in 4,096 slots of K/V, in blocks of 16; against a region of max_model_len
                    slots for each sequence. paging/seqs: sequences at once. paging/filled: slots that hold K/V
    batching        output tokens per second of 32 requests; against batches of 8 that wait for their longest member,
                    and against one request at a time
    chunked         ms that a stream waits at most while a prompt of 1,800 tokens is computed beside it, in chunks of
                    128; against the prompt as one step. chunked/first: ms to that prompt's own first token
    preemption      s for 24 stories in a quarter of the blocks that they need at once, the latest being computed again;
                    against swapping, and against enough blocks
    invariant       output tokens per second with batch_invariant; against without it. invariant/same and
                    invariant/same-off: of 32 requests, those with the same text and logprobs, bit by bit, alone and
                    together
    ahead           output tokens per second with async_scheduling; against without it
    verify          output tokens per second with one step in 100 verified; against none

Times are the processor's, in one thread: what somebody else does on the machine does not count. Both halves of a pair
take turns; figures are medians over the repetitions, as are the ratios of each. Requests are of random tokens, greedy
and of fixed lengths, if nothing else is said.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch

from benchmarks.workload import Job, mixed
from quire import LLM, SamplingParams
from quire.report import Row, show, write

Measured = dict[str, float]
NAMES = ("kv-cache", "paging", "batching", "chunked", "preemption", "invariant", "ahead", "verify")


def fixed(job: Job, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": job.output_len, "ignore_eos": True, **fields})


def speed(llm: LLM, jobs: list[Job], at_once: int | None = None) -> float:
    """Output tokens per second; in batches of ``at_once`` requests, the next one when the last of them is done."""
    llm.reset_prefix_cache()
    at_once = at_once or len(jobs)
    began = time.process_time()
    for first in range(0, len(jobs), at_once):
        for job in jobs[first : first + at_once]:
            llm.engine.add_request(job.prompt, fixed(job))
        while llm.engine.has_unfinished():
            llm.engine.step()
    return sum(job.output_len for job in jobs) / (time.process_time() - began)


def repeated(measure: Callable[[], Measured], repeat: int) -> dict[str, list[float]]:
    """One measurement to warm up, then ``repeat`` that count; by name."""
    measure()
    runs = [measure() for _ in range(repeat)]
    return {name: [run[name] for run in runs] for name in runs[0]}


def row(name: str, runs: dict[str, list[float]], unit: str, *peers: str, less: bool = False) -> Row:
    """The figure called ``name`` against its peers, as a ratio above 1 where it is better. ``less``: less is better."""
    mine = runs[name]
    vs = {p: median(b / a if less else a / b for a, b in zip(mine, runs[p], strict=True)) for p in peers}
    return Row(name, median(mine), unit, vs)


def kv_cache(repeat: int) -> list[Row]:
    llm = LLM("pocket", enable_prefix_caching=False)
    rows = []
    for length in (128, 512, 1536):
        name = f"kv-cache/{length}"
        [job] = mixed(1, (length, length), (17, 17), llm.engine.model.vocab_size)

        def measure(name: str = name, job: Job = job) -> Measured:
            llm.engine.add_request(job.prompt, fixed(job))
            times = []
            while llm.engine.has_unfinished():
                began = time.process_time()
                llm.engine.step()
                times.append(time.process_time() - began)
            return {"again": 1e3 * times[0], name: 1e3 * median(times[1:])}

        runs = repeated(measure, repeat)
        rows += [row(name, runs, "ms per token", "again", less=True), Row(f"{name}-again", median(runs["again"]), "ms")]
    return rows


def paging(repeat: int) -> list[Row]:
    sizes = {"paging": 16, "regions": 512}
    llms = {
        name: LLM(
            "pocket", max_model_len=512, block_size=size, num_blocks=4096 // size + 1, enable_prefix_caching=False
        )
        for name, size in sizes.items()
    }
    jobs = mixed(48, (30, 120), (30, 120), llms["paging"].engine.model.vocab_size)
    rows = []
    for name, llm in llms.items():
        running, filled = [], []
        for job in jobs:
            llm.engine.add_request(job.prompt, fixed(job))
        while llm.engine.has_unfinished():
            llm.engine.step()
            stats = llm.engine.stats()
            if stats.num_waiting:  # while memory is what they wait for
                running.append(stats.num_running)
                filled.append(stats.slots_used / 4096)
        rows += [
            Row(f"{name}/seqs", mean(running), "sequences at once"),
            Row(f"{name}/filled", 100 * mean(filled), "% of the slots"),
        ]
    runs = repeated(lambda: {name: speed(llm, jobs) for name, llm in llms.items()}, repeat)
    return [row("paging", runs, "tok/s", "regions"), row("regions", runs, "tok/s"), *rows]


def batching(repeat: int) -> list[Row]:
    llm = LLM("pocket", max_num_seqs=8)
    jobs = mixed(32, (16, 64), (8, 128), llm.engine.model.vocab_size)

    def measure() -> Measured:
        return {"batching": speed(llm, jobs), "static-8": speed(llm, jobs, 8), "one-by-one": speed(llm, jobs, 1)}

    runs = repeated(measure, repeat)
    return [row("batching", runs, "tok/s", "static-8", "one-by-one")] + [
        row(name, runs, "tok/s") for name in ("static-8", "one-by-one")
    ]


def chunked(repeat: int) -> list[Row]:
    llms = {
        "chunked": LLM("pocket", max_num_batched_tokens=128),
        "whole": LLM("pocket", enable_chunked_prefill=False),
    }
    jobs = mixed(6, (20, 40), (120, 120), llms["whole"].engine.model.vocab_size)
    [long] = mixed(1, (1800, 1800), (1, 1), llms["whole"].engine.model.vocab_size)

    def measure() -> Measured:
        found: Measured = {}
        for name, llm in llms.items():
            llm.reset_prefix_cache()
            streams = {llm.engine.add_request(job.prompt, fixed(job)) for job in jobs}
            for _ in range(20):  # all of them stream
                llm.engine.step()
            asked = last = time.process_time()
            prompt = llm.engine.add_request(long.prompt, fixed(long))
            gap = first = 0.0
            while llm.engine.has_unfinished():
                events = llm.engine.step()
                now = time.process_time()
                if any(event.request_id in streams for event in events) and not first:
                    gap, last = max(gap, now - last), now
                if any(event.request_id == prompt for event in events):
                    first = now - asked
            found |= {name: 1e3 * gap, f"{name}/first": 1e3 * first}
        return found

    runs = repeated(measure, repeat)
    return [
        row("chunked", runs, "ms without a token", "whole", less=True),
        row("whole", runs, "ms without a token"),
        row("chunked/first", runs, "ms to the first token", "whole/first", less=True),
        row("whole/first", runs, "ms to the first token"),
    ]


def preemption(repeat: int) -> list[Row]:
    common: dict[str, Any] = {"max_model_len": 256, "enable_prefix_caching": False}
    llms = {
        "preemption": LLM("pocket", num_blocks=49, **common),
        "swap": LLM("pocket", num_blocks=49, preemption_mode="swap", **common),
        "room": LLM("pocket", num_blocks=385, **common),
    }
    jobs = mixed(24, (20, 40), (60, 100), llms["room"].engine.model.vocab_size)
    tokens = sum(job.output_len for job in jobs)
    runs = repeated(lambda: {name: tokens / speed(llm, jobs) for name, llm in llms.items()}, repeat)
    counts = [
        Row(f"{name}/count", llm.stats().num_preemptions / (repeat + 1), "preemptions")
        for name, llm in llms.items()
        if name != "room"
    ]
    mine = row("preemption", runs, "s", "swap", "room", less=True)
    return [mine, row("swap", runs, "s"), row("room", runs, "s"), *counts]


def invariant(repeat: int) -> list[Row]:
    llms = {"invariant": LLM("pocket", batch_invariant=True), "free": LLM("pocket")}
    vocab_size = llms["free"].engine.model.vocab_size
    jobs = mixed(32, (16, 128), (16, 128), vocab_size)
    same = []
    for name, llm in llms.items():
        prompts = [job.prompt for job in jobs]
        params = [fixed(job, temperature=1.0, seed=i, logprobs=0, detokenize=False) for i, job in enumerate(jobs)]
        together = llm.generate(prompts, params, use_tqdm=False)
        llm.reset_prefix_cache()
        alone = [llm.generate(p, q, use_tqdm=False)[0] for p, q in zip(prompts, params, strict=True)]
        count = sum(
            a.outputs[0].token_ids == b.outputs[0].token_ids and a.outputs[0].logprobs == b.outputs[0].logprobs
            for a, b in zip(alone, together, strict=True)
        )
        same.append(Row("invariant/same" + "-off" * (name == "free"), count, "of 32"))
    runs = repeated(lambda: {name: speed(llm, jobs) for name, llm in llms.items()}, repeat)
    return [row("invariant", runs, "tok/s", "free"), row("free", runs, "tok/s"), *same]


def ahead(repeat: int) -> list[Row]:
    llms = {"ahead": LLM("pocket", async_scheduling=True), "waiting": LLM("pocket", async_scheduling=False)}
    jobs = mixed(32, (16, 128), (16, 128), llms["ahead"].engine.model.vocab_size)
    runs = repeated(lambda: {name: speed(llm, jobs) for name, llm in llms.items()}, repeat)
    return [row("ahead", runs, "tok/s", "waiting"), row("waiting", runs, "tok/s")]


def verify(repeat: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        llms = {"verify": LLM("pocket", verify=0.01, verify_dir=folder), "unverified": LLM("pocket")}
        jobs = mixed(64, (16, 128), (16, 128), llms["verify"].engine.model.vocab_size)
        runs = repeated(lambda: {name: speed(llm, jobs) for name, llm in llms.items()}, repeat)
        stats = llms["verify"].stats()
        return [
            row("verify", runs, "tok/s", "unverified"),
            row("unverified", runs, "tok/s"),
            Row("verify/steps", stats.steps_verified, "steps verified"),
            Row("verify/diverged", stats.steps_diverged, "of them diverged"),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated names of the rows above")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    measures = dict(
        zip(NAMES, (kv_cache, paging, batching, chunked, preemption, invariant, ahead, verify), strict=True)
    )
    torch.set_num_threads(1)
    rows = []
    for name in args.only.split(","):
        if name not in measures:
            parser.error(f"--only {name}: unknown; choose of {', '.join(NAMES)}")
        rows += measures[name](args.repeat)
    show(rows, "pocket: ideas on and off")
    if args.json:
        write(args.json, rows, "python -m benchmarks.concepts")


if __name__ == "__main__":
    main()
