"""What speculation is worth on a GPU: an 8B-shaped target, drafts from a 1B-shaped model or for nothing.

    python -m benchmarks.gpu_speculation [--drafts 1,2,3,4,5] [--json PATH]

    plain/bN        milliseconds per step of N requests without speculation
    draft/P/bN/kK   speedup with K drafts of the draft model per step, of which P per cent agree
    draft/P/bN      the best of these
    free/P/bN/k5    the same with prompt lookup: it is done, and then the script's drafts are put in place of its own
    auto/P/b64      64 requests, up to 5 drafts of the draft model, the controller on; auto-free/P/b64: free ones
    accepted/…      of each, the drafts accepted per verification

The weights are random, so what they say means nothing, and the text is written by a script: one more small kernel
raises the logit of the script's token, in the target's logits always, in the draft model's with probability P, position
by position; else that of another one. Everything costs what it costs, the draft model's passes included; only which
drafts agree is decided by the script. Each figure is a median of three; requests have 32 or more tokens in and
200 out, greedy.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.gpu import MODELS
from quire import LLM, SamplingParams
from quire.fast.runner.lookup import Lookup
from quire.reference.control.plan import StepPlan, StepResult
from quire.report import Row, show, write

PROMPT, OUTPUT, LENGTH = 32, 200, 512
SHARES = (60, 80)
MANY = 64


class Scripted:
    """A model whose likeliest token behind position p is ``script[p + 1]``, whatever its weights say."""

    def __init__(self, model: Any, script: Tensor) -> None:
        self.model, self.script = model, script[1:]
        self._positions: dict[int, Tensor] = {}  # by where the hidden states are: graphs leave them there

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, ids: Tensor, positions: Tensor, caches: Any, meta: Any, wanted: Tensor | None = None) -> Tensor:
        hidden = self.model.forward(ids, positions, caches, meta, wanted)
        self._positions[hidden.data_ptr()] = positions if wanted is None else positions[wanted]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        positions = self._positions[hidden.data_ptr()][: len(hidden)]
        return logits.scatter_(1, self.script[positions][:, None], 1e4)


@dataclass
class Oracle:
    """Prompt lookup on the device, and one more small kernel that says what the script does."""

    lookup: Lookup
    script: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lookup, name)

    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        found = self.lookup.draft(plan)
        asked = {i: s for i, s in enumerate(plan.seqs) if s.propose}
        if asked:
            rows = torch.tensor([s.row for s in asked.values()], dtype=torch.int32).pin_memory()
            rows, tables = rows.to("cuda", non_blocking=True), self.lookup.rows
            _say[(len(asked),)](rows, tables.tokens, tables.row_len, self.script, tables.tokens.stride(0), K=8)

        def offer(result: StepResult) -> None:
            found(result)
            result.drafts.update({i: range(s.propose) for i, s in asked.items()})

        return offer


@triton.jit
def _say(rows, tokens, row_len, script, stride, K: tl.constexpr):
    row = tl.load(rows + tl.program_id(0)).to(tl.int64)
    at = tl.load(row_len + row) + tl.arange(0, K)
    tl.store(tokens + row * stride + at, tl.load(script + at).to(tl.int32), mask=at < stride)


def scripts() -> tuple[Tensor, dict[int, Tensor]]:
    """The target's text, and by the share of agreement what is drafted: token ids int64 [LENGTH + 8]."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(10, 10_000, (LENGTH + 8,), generator=generator)
    luck = torch.rand(LENGTH + 8, generator=generator).argsort()  # exactly so many agree, in random places
    window = torch.arange(LENGTH + 8)
    drafts = {}
    for share in SHARES:
        agrees = torch.zeros(LENGTH + 8, dtype=torch.bool)
        for first in range(0, LENGTH + 8, 40):  # and as many in every stretch of text
            stretch = luck[(luck >= first) & (luck < first + 40)]
            agrees[stretch[: round(len(stretch) * share / 100)]] = True
        drafts[share] = torch.where(agrees, truth, truth + 10_000 + window % 7)
    return truth, drafts


@contextmanager
def engine(target: str, truth: Tensor, speculation: dict[str, Any] | None = None) -> Iterator[LLM]:
    """An engine on the target's shape that writes ``truth``."""
    llm = LLM(
        target, load_format="dummy", dtype="bfloat16", max_model_len=LENGTH, num_blocks=4000, max_num_seqs=MANY,
        max_num_batched_tokens=4096, enable_prefix_caching=False, speculative_config=speculation,
    )  # fmt: skip
    runner: Any = llm.engine.runner
    runner.model = Scripted(runner.model, truth.to("cuda"))
    try:
        yield llm
    finally:
        llm.close()
        del runner, llm
        gc.collect()
        torch.cuda.empty_cache()


def milliseconds(llm: LLM, truth: Tensor, requests: int, repeat: int = 3) -> float:
    """Per token of each request. First without the clock: a size that comes up compiles, then captures; with many
    requests that end at different times there are many sizes."""
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=OUTPUT, detokenize=False)
    starts = [PROMPT + i % 40 for i in range(requests)]  # so that not all of them are right at the same time
    prompts = [{"prompt_token_ids": truth[:start].tolist()} for start in starts]
    times = []
    for _ in range((warming := 2 if requests == 1 else 6) + repeat):
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        times.append(time.perf_counter() - began)
        for start, output in zip(starts, outputs):
            assert output.outputs[0].token_ids == truth[start : start + OUTPUT].tolist(), "not the script's text"
    return median(times[warming:]) / OUTPUT * 1e3


def measure(target: str, draft: str, lengths: list[int]) -> Iterator[Row]:
    truth, drafted = scripts()
    plain: dict[int, float] = {}
    with engine(target, truth) as llm:
        for requests in (1, MANY):
            plain[requests] = milliseconds(llm, truth, requests)
            yield Row(f"plain/b{requests}", plain[requests], "ms")

    def speedups(name: str, llm: LLM, requests: int, script: Any) -> Iterator[Row]:
        for share in SHARES:
            script(drafted[share])
            before = llm.stats()
            took = milliseconds(llm, truth, requests)
            after = llm.stats()
            agreed = after.num_accepted_tokens - before.num_accepted_tokens
            per_step = agreed / max(after.num_drafts - before.num_drafts, 1)
            yield Row(name.format(share), plain[requests] / took, "×")
            yield Row("accepted/" + name.format(share), per_step, "drafts per verification")

    def scripted_draft_model(llm: LLM) -> Any:
        proposer: Any = llm.engine.runner.proposer  # type: ignore[attr-defined]
        script = truth.to("cuda")
        proposer.model = Scripted(proposer.model, script)
        return lambda wanted: script.copy_(wanted)

    def oracle(llm: LLM) -> Any:
        runner: Any = llm.engine.runner
        runner.proposer = Oracle(runner.proposer, script := truth.to("cuda"))
        return lambda wanted: script.copy_(wanted)

    ngram, model = {"method": "ngram", "num_speculative_tokens": 5}, {"model": draft}
    with engine(target, truth, ngram | {"adaptive": False}) as llm:
        yield from speedups("free/{}/b1/k5", llm, 1, oracle(llm))
    found: dict[str, list[float]] = {}
    for k in lengths:
        with engine(target, truth, model | {"num_speculative_tokens": k, "adaptive": False}) as llm:
            for row in speedups(f"draft/{{}}/b1/k{k}", llm, 1, scripted_draft_model(llm)):
                if row.unit == "×":
                    found.setdefault(row.name.rpartition("/")[0], []).append(row.value)
                yield row
    yield from (Row(name, max(values), "× (best k)") for name, values in found.items())
    with engine(target, truth, model | {"num_speculative_tokens": 5}) as llm:
        yield from speedups(f"auto/{{}}/b{MANY}", llm, MANY, scripted_draft_model(llm))
    with engine(target, truth, ngram) as llm:
        yield from speedups(f"auto-free/{{}}/b{MANY}", llm, MANY, oracle(llm))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafts", default="1,2,3,4,5", help="numbers of drafts to try, with the draft model")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("llama-3-8b", "llama-3.2-1b"):
            Path(folder, name).mkdir()
            Path(folder, name, "config.json").write_text(json.dumps(MODELS[name]))
        lengths = [int(k) for k in args.drafts.split(",")]
        for row in measure(str(Path(folder, "llama-3-8b")), str(Path(folder, "llama-3.2-1b")), lengths):
            rows.append(row)
            print(f"{row.name:<18} {row.value:7.3f} {row.unit}", flush=True)
            if args.json:
                write(args.json, rows, "python -m benchmarks.gpu_speculation")
    show(rows, "speculation on a GPU")


if __name__ == "__main__":
    main()
