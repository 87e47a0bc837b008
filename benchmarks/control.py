"""What the control plane costs: microseconds per sequence and step for scheduling and bookkeeping.

    python -m benchmarks.control [--sequences 256] [--json PATH]

A runner that computes nothing answers each plan at once, so all that is timed is ``schedule`` and ``update``: planning,
reserving blocks, appending tokens, finding stops, publishing full blocks to the prefix cache, making events.
"""

from __future__ import annotations

import argparse
import gc
import time
from statistics import median

from quire.reference.control.config import SchedulerConfig
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Request
from quire.reference.control.scheduler import Scheduler
from quire.report import Row, show, write


def answer(plan: StepPlan) -> StepResult:
    """A token for every sequence that samples; different ones, so that the prefix cache has work to do."""
    return StepResult(plan.step, [[2 + (s.row * 7919 + s.start) % 30000] if s.samples else [] for s in plan.seqs])


def measure(num_sequences: int, prompt_len: int, output_len: int) -> tuple[list[float], list[float], float]:
    """Seconds of each decode step spent in schedule and in update, and microseconds per prompt token of prefill."""
    blocks = num_sequences * (-(-(prompt_len + output_len) // 16)) + 1
    config = SchedulerConfig(
        num_blocks=blocks,
        max_model_len=prompt_len + output_len,
        max_num_seqs=num_sequences,
        max_num_batched_tokens=8192,
    )
    scheduler = Scheduler(config)
    params = SamplingParams(max_tokens=output_len)
    for i in range(num_sequences):
        prompt = [(i * 31 + j * 17) % 30000 for j in range(prompt_len)]
        scheduler.add(Request(f"r{i}", prompt, params, seed=i, eos_token_ids=(1,)))
    schedule_s, update_s, prefill_s = [], [], 0.0
    while scheduler.has_unfinished():
        t0 = time.perf_counter()
        plan = scheduler.schedule()
        t1 = time.perf_counter()
        assert plan is not None
        result = answer(plan)
        t2 = time.perf_counter()
        scheduler.update(plan, result)
        t3 = time.perf_counter()
        if len(plan.seqs) == num_sequences and not plan.starts:
            schedule_s.append(t1 - t0)
            update_s.append(t3 - t2)
        elif plan.starts:
            prefill_s += t1 - t0 + t3 - t2
    return schedule_s, update_s, prefill_s / (num_sequences * prompt_len) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    gc.freeze()
    runs = [measure(args.sequences, args.prompt_len, args.output_len) for _ in range(args.repeat)]
    per = 1e6 / args.sequences
    schedule = median(sum(run[0]) / len(run[0]) for run in runs) * per
    update = median(sum(run[1]) / len(run[1]) for run in runs) * per
    usual = median(median(map(sum, zip(run[0], run[1], strict=True))) for run in runs) * per
    rows = [
        Row("us-per-seq-step", schedule + update, "µs", {"limit-10us": 10 / (schedule + update)}),
        Row("schedule", schedule, "µs"),
        Row("update", update, "µs"),
        Row("median-step", usual, "µs"),  # without the steps that fill and publish blocks, or end sequences
        Row("prefill", median(run[2] for run in runs), "µs per prompt token"),
    ]
    show(rows, f"Control plane, {args.sequences} sequences, ghost runner")
    if args.json:
        write(args.json, rows, "python -m benchmarks.control")


if __name__ == "__main__":
    main()
