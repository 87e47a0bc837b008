"""Speculative decoding on the embedded model: how many drafts are accepted, and what that is worth.

    python -m benchmarks.speculation [--backend reference] [--repeat 5] [--only copy,json] [--json PATH] [--plot SVG]
    python -m benchmarks.speculation --from PATH --plot SVG

    accepted/t0, accepted/t0.7    drafts accepted per verification of k = 5 by pocket-draft, the target's own token not
                                  counted, pooled over the tasks of ``quire.zoo.evaluate`` at that temperature, one
                                  request at a time; the share of the drafts in brackets. stories/t0, stories/t0.7: of
                                  stories alone; ngram/…: of prompt lookup
    speedup/TASK/bN               time without speculation / time with it, N requests at once, temperature 0, with the
                                  draft model and as many drafts as the controller wants (5 at most)
    speedup-ngram/TASK/bN         the same with prompt lookup
    mean-tokens/TASK/bN           tokens per verification there
    step/bN/kK                    a step of N sequences with K drafts each, next to a step of one sequence without
    draft/bN                      a drafted token of each of N sequences, next to a step of theirs without drafts
    free-tokens                   of the line through all step/…: tokens that cost as much as the part without any

Answers are the same with and without: the program stops if they are not. The times are of generating: the prompts' K/V
is in the prefix cache. Ratios are medians over repetitions, within each of which all take turns. ``--cpu-time`` counts
the processor's time instead of the clock's, for a machine that others use as well; it says the same as long as there is
one thread (OMP_NUM_THREADS=1).

``--plot`` draws when speculation pays, from the costs measured (``benchmarks.speculation_plot``).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks import speculation_plot
from quire import LLM, SamplingParams
from quire.reference.control.plan import StepPlan
from quire.reference.speculation.proposer import Draft, View
from quire.report import Row, show, write
from quire.zoo import model_path
from quire.zoo.evaluate import GOALS, Question, questions
from quire.zoo.world import stories

TASKS = {"copy": "copy", "json": "json", "recall": "recall-1k", "facts": "facts", "tools": "tool-call", "stories": None}
BATCHES = (1, 8, 32)
COST_BATCHES = (1, 2, 4, 8, 16, 32)
ONE_BY_ONE = 8  # requests that a measurement with one request at a time consists of
METHODS = {"": {"model": "pocket-draft"}, "-ngram": {"method": "ngram"}}
K = 5
Clock = Callable[[], float]


def asked(task: str | None, count: int, tokenizer: Tokenizer) -> list[Question]:
    """The prompts of a row of the evaluation; stories, which it does not have, for None."""
    if task is not None:
        return questions(task, count, tokenizer)
    rng = random.Random("stories")
    examples = [stories.make(rng, True) for _ in range(count)]
    return [Question(e.messages[:-1], e.answer, e.tools) for e in examples]


def prompts(llm: LLM, found: list[Question]) -> list[dict[str, Any]]:
    return [llm.render_chat(q.messages, tools=q.tools, add_generation_prompt=True) for q in found]


def accepted(llm: LLM, texts: list[dict[str, Any]], temperature: float, name: str) -> Row:
    """Accepted drafts per verification, one request at a time."""
    before = llm.stats()
    for i, text in enumerate(texts):
        llm.generate(text, SamplingParams(temperature=temperature, seed=i, max_tokens=96), use_tqdm=False)
    after = llm.stats()
    steps = after.num_drafts - before.num_drafts
    count = after.num_accepted_tokens - before.num_accepted_tokens
    share = count / (after.num_draft_tokens - before.num_draft_tokens)
    return Row(name, count / steps, f"of {K} ({share:.0%} of those offered)")


def timed(llm: LLM, texts: list[dict[str, Any]], batch: int, clock: Clock) -> tuple[float, list[list[int]]]:
    """Seconds for all texts, ``batch`` at a time, and what came."""
    params = SamplingParams(temperature=0, max_tokens=96)
    outputs = []
    began = clock()
    for i in range(0, len(texts), batch):
        outputs += llm.generate(texts[i : i + batch], params, use_tqdm=False)
    return clock() - began, [o.outputs[0].token_ids for o in outputs]


def speedups(
    llms: dict[str, LLM], task: str, texts: list[dict[str, Any]], batch: int, repeat: int, clock: Clock
) -> list[Row]:
    texts = texts[: max(batch, ONE_BY_ONE)]
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for llm in llms.values():
        timed(llm, texts, batch, clock)  # fills the prefix cache
    before = {name: llms[name].stats() for name in METHODS}
    for _ in range(repeat):
        plain, truth = timed(llms["plain"], texts, batch, clock)
        for name in METHODS:
            seconds, got = timed(llms[name], texts, batch, clock)
            if got != truth:
                raise SystemExit(f"{task}, {batch} at once: speculation{name} has changed a text")
            ratios[name].append(plain / seconds)
    rows = [Row(f"speedup{name}/{task}/b{batch}", median(ratios[name]), "×") for name in METHODS]
    for name in METHODS:
        now, then = llms[name].stats(), before[name]
        steps, count = now.num_drafts - then.num_drafts, now.num_accepted_tokens - then.num_accepted_tokens
        rows.append(Row(f"mean-tokens{name}/{task}/b{batch}", 1 + count / max(steps, 1), f"in {steps} verifications"))
    return rows


class Certain:
    """Offers as many drafts as are wanted, for nothing: what a verification costs does not depend on what they are."""

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None: ...

    def follow(self, plan: StepPlan, tokens: Any, row_len: Any) -> None: ...

    def propose(self, view: View) -> list[Draft]:
        return [Draft([7] * int(want)) for want in view.want]


def stepped(llm: LLM, texts: list[dict[str, Any]], clock: Clock) -> float:
    """Seconds of a step while all ``texts`` are being answered; prompts and the first drafts are not counted."""
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    for text in texts:
        llm.engine.add_request(text["prompt_token_ids"], params)
    seconds = []
    while llm.engine.has_unfinished():
        began = clock()
        llm.engine.step()
        seconds.append(clock() - began)
    return median(seconds[2:-1])


def costs(settings: dict[str, Any], texts: list[dict[str, Any]], repeat: int, clock: Clock) -> list[Row]:
    """What steps and drafts cost, in steps of one sequence."""
    llms = {0: LLM("pocket", **settings)}
    for k in (1, 3, 5):
        fixed = {"num_speculative_tokens": k, "adaptive": False}
        llms[k] = LLM("pocket", **settings, speculative_config=fixed | {"method": "ngram"})
        llms[k].engine.runner.proposer = Certain()
    fixed = {"num_speculative_tokens": K, "adaptive": False}
    drafting = LLM("pocket", **settings, speculative_config=fixed | {"model": "pocket-draft"})
    steps: dict[tuple[int, int], list[float]] = {(batch, k): [] for batch in COST_BATCHES for k in llms}
    drafts: dict[int, list[float]] = {batch: [] for batch in COST_BATCHES}
    for _ in range(repeat):
        one = stepped(llms[0], texts[:1], clock)
        for batch in COST_BATCHES:
            for k, llm in llms.items():
                steps[batch, k].append(stepped(llm, texts[:batch], clock) / one)
            whole = stepped(drafting, texts[:batch], clock) / one
            drafts[batch].append((whole - steps[batch, K][-1]) / K / steps[batch, 0][-1])
    rows = [Row(f"step/b{b}/k{k}", median(found), f"for {b * (1 + k)} tokens") for (b, k), found in steps.items()]
    rows += [Row(f"draft/b{b}", median(found), "of a step") for b, found in drafts.items()]
    slope, fixed_part = np.polyfit([b * (1 + k) for b, k in steps], [median(f) for f in steps.values()], 1)
    return [*rows, Row("free-tokens", fixed_part / slope, "tokens")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", choices=("auto", "reference", "fast"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--n", type=int, default=6, help="prompts per task of accepted/…")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TASKS), help="tasks of speedup/…")
    parser.add_argument("--cpu-time", action="store_true", help="processor's time instead of the clock's")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="an SVG file")
    parser.add_argument("--from", dest="measured", help="what --json has written: only plot it")
    args = parser.parse_args()
    if args.measured:
        if not args.plot:
            parser.error("--from says what to plot, --plot where to")
        speculation_plot.draw(args.measured, args.plot)
        return
    if args.plot and not args.json:
        parser.error("--plot draws what --json has written: give both")
    clock = time.process_time if args.cpu_time else time.perf_counter
    # Bitwise equal texts are what is promised with batch_invariant, so that is what is measured, on both sides.
    settings = {"dtype": "float32", "device": "cpu", "backend": args.backend, "batch_invariant": True}
    settings |= {"max_num_seqs": 32, "num_blocks": 4000}
    tokenizer = Tokenizer.from_file(str(model_path("pocket") / "tokenizer.json"))
    rows: list[Row] = []
    for name, method in METHODS.items():
        llm = LLM("pocket", **settings, speculative_config=method | {"num_speculative_tokens": K, "adaptive": False})
        mix = [t for task in GOALS if task != "recall-2k" for t in prompts(llm, asked(task, args.n, tokenizer))]
        tales = prompts(llm, asked(None, args.n, tokenizer))
        prefix = name.removeprefix("-") + "/" * bool(name)
        for temperature in (0.0, 0.7):
            suffix = f"t{temperature:g}"
            rows.append(accepted(llm, mix, temperature, f"{prefix}accepted/{suffix}"))
            rows.append(accepted(llm, tales, temperature, f"{prefix}stories/{suffix}"))
    show(rows, "accepted drafts")
    llms = {"plain": LLM("pocket", **settings)}
    found = costs(settings, prompts(llms["plain"], asked("json", max(COST_BATCHES), tokenizer)), args.repeat, clock)
    show(found, "what steps cost, in steps of one sequence")
    rows += found
    if args.json:
        write(args.json, rows, "python -m benchmarks.speculation")
    for name, method in METHODS.items():
        llms[name] = LLM("pocket", **settings, speculative_config=method | {"num_speculative_tokens": K})
    for task in args.only:
        texts = prompts(llms["plain"], asked(TASKS[task], max(BATCHES), tokenizer))
        for batch in BATCHES:
            rows += speedups(llms, task, texts, batch, args.repeat, clock)
    show(rows, f"speculation on pocket, k = {K} at most")
    if args.json:
        write(args.json, rows, "python -m benchmarks.speculation")
    if args.plot:
        speculation_plot.draw(args.json, args.plot)


if __name__ == "__main__":
    main()
