"""What sharing saves: KV blocks under parallel sampling and beam search, and prefill work under a shared prefix.

    python -m benchmarks.sharing [--model pocket] [--json PATH]

The first table repeats §6.3 of the PagedAttention paper (Kwon et al., SOSP 2023) with its two length profiles: short
(Alpaca-like: 19 tokens in, 58 out on average) and long (ShareGPT-like: 161 in, 338 out). The figure is the share of
blocks saved, (block table entries - blocks used) / block table entries, over all steps of a run. ``prefix`` compares
the time to first token with the prefix cache on and off, for questions behind one long system prompt.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

from benchmarks.workload import mixed
from quire import LLM, BeamSearchParams, SamplingParams
from quire.report import Row, show, write

PROFILES = {"": ((10, 28), (29, 87)), "-long": ((81, 241), (169, 507))}  # uniform around the paper's means
PAPER = {
    ("parallel", ""): "6.1–9.8 %",
    ("parallel", "-long"): "16.2–30.5 %",
    ("beam", ""): "37.6–55.2 %",
    ("beam", "-long"): "44.3–66.3 %",
}


def saved(llm: LLM, kind: str, width: int, profile: str, count: int) -> float:
    """Share of blocks saved by sharing, in percent, with ``count`` requests of ``width`` sequences each."""
    inputs, outputs = PROFILES[profile]
    llm.reset_prefix_cache()
    engine = llm.engine
    for i, job in enumerate(mixed(count, inputs, outputs, engine.model.vocab_size, seed=width)):
        params: SamplingParams | BeamSearchParams
        if kind == "beam":
            params = BeamSearchParams(beam_width=width, max_tokens=job.output_len, ignore_eos=True)
        else:
            params = SamplingParams(n=width, temperature=1.0, max_tokens=job.output_len, ignore_eos=True, seed=i)
        engine.add_request(job.prompt, params)
    entries = used = 0
    while engine.has_unfinished():
        engine.step()
        stats = engine.stats()
        used += stats.blocks_used
        entries += stats.blocks_used + stats.blocks_shared
    return 100 * (entries - used) / entries


def time_to_first_token(llm: LLM, prompt: list[int]) -> float:
    began = time.perf_counter()
    llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1, detokenize=False), use_tqdm=False)
    return time.perf_counter() - began


def prefix(model: str, system_len: int, questions: int) -> list[Row]:
    """Time to first token and prefill tokens, with the prefix cache on against off, in turn."""
    llms = {on: LLM(model, enable_prefix_caching=on, max_num_seqs=8) for on in (True, False)}
    rng = random.Random(0)
    vocab_size = llms[True].engine.model.vocab_size
    system = [rng.randrange(10, vocab_size) for _ in range(system_len)]
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(questions + 1):
        prompt = system + [rng.randrange(10, vocab_size) for _ in range(rng.randint(10, 40))]
        for on, llm in llms.items():
            seconds = time_to_first_token(llm, prompt)
            if i > 0:  # the first question fills the cache
                times[on].append(seconds)
    stats = llms[True].stats()
    ratio = median(off / on for on, off in zip(times[True], times[False], strict=True))
    return [
        Row("prefix", 1e3 * median(times[True]), "ms to first token", {"cache-off": ratio}),
        Row("prefix-off", 1e3 * median(times[False]), "ms to first token"),
        Row("prefix-tokens-saved", 100 * stats.prefix_hits / stats.prefix_queries, "% of prompt tokens"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--requests", type=int, default=8, help="per row; fewer with the long profile")
    parser.add_argument("--system-len", type=int, default=800)
    parser.add_argument("--json")
    args = parser.parse_args()
    llm = LLM(args.model, max_num_seqs=6 * args.requests)
    rows = []
    for kind in ("parallel", "beam"):
        for profile in PROFILES:
            for width in (2, 4, 6):
                share = saved(llm, kind, width, profile, args.requests if not profile else max(args.requests // 2, 1))
                rows.append(Row(f"{kind}-{width}{profile}", share, f"% of blocks (paper {PAPER[kind, profile]})"))
    rows += prefix(args.model, args.system_len, questions=9)
    show(rows, f"{args.model}: what sharing saves")
    if args.json:
        write(args.json, rows, "python -m benchmarks.sharing")


if __name__ == "__main__":
    main()
