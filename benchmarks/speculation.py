"""Speculative decoding on the embedded model: how many drafts are accepted, and what that is worth.

    python -m benchmarks.speculation [--backend reference] [--repeat 5] [--only copy,json] [--json PATH]

    accepted/t0, accepted/t0.7    drafts accepted per verification of k = 5 by pocket-draft, the target's own token not
                                  counted, pooled over the tasks of ``quire.zoo.evaluate`` at that temperature, one
                                  request at a time; the share of the drafts in brackets. stories/t0, stories/t0.7: of
                                  stories alone; ngram/…: of prompt lookup
    speedup/TASK/bN               time without speculation / time with it, N requests at once, temperature 0, with the
                                  draft model and as many drafts as the controller wants (5 at most)
    speedup-ngram/TASK/bN         the same with prompt lookup
    mean-tokens/TASK/bN           tokens per verification there

Answers are the same with and without: the program stops if they are not. The times are of generating: the prompts' K/V
is in the prefix cache. Ratios are medians over repetitions, within each of which all take turns.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from typing import Any

from tokenizers import Tokenizer

from quire import LLM, SamplingParams
from quire.report import Row, show, write
from quire.zoo import model_path
from quire.zoo.evaluate import GOALS, Question, questions
from quire.zoo.world import stories

TASKS = {"copy": "copy", "json": "json", "recall": "recall-1k", "facts": "facts", "tools": "tool-call", "stories": None}
BATCHES = (1, 8, 32)
ONE_BY_ONE = 8  # requests that a measurement with one request at a time consists of
METHODS = {"": {"model": "pocket-draft"}, "-ngram": {"method": "ngram"}}
K = 5


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


def timed(llm: LLM, texts: list[dict[str, Any]], batch: int) -> tuple[float, list[list[int]]]:
    """Seconds for all texts, ``batch`` at a time, and what came."""
    params = SamplingParams(temperature=0, max_tokens=96)
    outputs = []
    began = time.perf_counter()
    for i in range(0, len(texts), batch):
        outputs += llm.generate(texts[i : i + batch], params, use_tqdm=False)
    return time.perf_counter() - began, [o.outputs[0].token_ids for o in outputs]


def speedups(llms: dict[str, LLM], task: str, texts: list[dict[str, Any]], batch: int, repeat: int) -> list[Row]:
    texts = texts[: max(batch, ONE_BY_ONE)]
    ratios: dict[str, list[float]] = {name: [] for name in METHODS}
    for llm in llms.values():
        timed(llm, texts, batch)  # fills the prefix cache
    before = {name: llms[name].stats() for name in METHODS}
    for _ in range(repeat):
        plain, truth = timed(llms["plain"], texts, batch)
        for name in METHODS:
            seconds, got = timed(llms[name], texts, batch)
            if got != truth:
                raise SystemExit(f"{task}, {batch} at once: speculation{name} has changed a text")
            ratios[name].append(plain / seconds)
    rows = [Row(f"speedup{name}/{task}/b{batch}", median(ratios[name]), "×") for name in METHODS]
    for name in METHODS:
        now, then = llms[name].stats(), before[name]
        steps, count = now.num_drafts - then.num_drafts, now.num_accepted_tokens - then.num_accepted_tokens
        rows.append(Row(f"mean-tokens{name}/{task}/b{batch}", 1 + count / max(steps, 1), f"in {steps} verifications"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", choices=("auto", "reference", "fast"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--n", type=int, default=6, help="prompts per task of accepted/…")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(TASKS), help="tasks of speedup/…")
    parser.add_argument("--json")
    args = parser.parse_args()
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
    for name, method in METHODS.items():
        llms[name] = LLM("pocket", **settings, speculative_config=method | {"num_speculative_tokens": K})
    for task in args.only:
        texts = prompts(llms["plain"], asked(TASKS[task], max(BATCHES), tokenizer))
        for batch in BATCHES:
            rows += speedups(llms, task, texts, batch, args.repeat)
    show(rows, f"speculation on pocket, k = {K} at most")
    if args.json:
        write(args.json, rows, "python -m benchmarks.speculation")


if __name__ == "__main__":
    main()
