"""The fast data plane on a CPU against Hugging Face transformers, in one run, in turn with it, same arithmetic.

    python -m benchmarks.cpu [--repeat 5] [--only pocket,125m] [--dtypes bfloat16,float32] [--json PATH]

    pocket-64  output tokens per second, the embedded model: 64 requests of 16 to 128 random tokens in and 16 to 128
               out, greedy, all at once. ``hf-single``: ``generate`` one request at a time (on every fourth request; its
               speed does not depend on the others); ``hf-static16``: in padded batches of 16, wanted tokens only
    125m-b1    output tokens per second, a Llama of 124 million random weights (hidden 768, 12 layers, 12 heads): one
               request of 32 tokens in and 64 out, greedy. ``hf``: ``generate``
    125m-b16   the same, 16 such requests at once; ``hf``: ``generate`` on the batch of 16 (equal lengths: no padding)

Rows are in bfloat16, those with -float32 in float32. ``pocket-64`` also has its ratio to ``hf-single`` in float32,
which is transformers' faster one. ``reference`` is quire's own reference plane on the same work. Values and ratios are
medians over the repetitions, ratios within each. Measure on an idle machine: threads wait for each other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from random import Random
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.throughput import load_transformers, run_quire, run_transformers
from benchmarks.workload import Job, mixed
from quire import LLM
from quire.report import Row, show, write

SHAPE = LlamaConfig(
    vocab_size=50257, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
    num_key_value_heads=12, max_position_embeddings=2048, tie_word_embeddings=True, dtype="bfloat16",
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SUFFIX = {"bfloat16": "", "float32": "-float32"}


class Figures:
    """Tokens per second by name, one entry per repetition."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[float]] = {}

    def note(self, name: str, figure: float) -> None:
        self._by_name.setdefault(name, []).append(figure)

    def row(self, name: str, unit: str, peers: dict[str, str]) -> Row:
        """``peers``: what a peer is called in the row -> the name of its figures."""
        own = self._by_name[name]
        ratios = {
            peer: median(a / b for a, b in zip(own, self._by_name[other], strict=True)) for peer, other in peers.items()
        }
        return Row(name, median(own), unit, ratios)


def pocket(figures: Figures, dtypes: list[str], repeat: int) -> list[Row]:
    # As many blocks as the requests fill: a larger cache is new memory, which the system has to hand over first.
    planes = {
        (dtype, plane): LLM("pocket", dtype=dtype, backend=plane, max_model_len=512, num_blocks=1100)
        for dtype in dtypes
        for plane in ("fast", "reference")
    }
    peers = {dtype: load_transformers(planes[dtype, "fast"].assets.path, dtype) for dtype in dtypes}
    jobs = mixed(64, (16, 128), (16, 128), planes[dtypes[0], "fast"].engine.model.vocab_size)
    for dtype in dtypes:
        run_quire(planes[dtype, "fast"], jobs)
        run_transformers(peers[dtype], jobs[:2], 2)
    for _ in range(repeat):
        for dtype in dtypes:
            name = f"pocket-64{SUFFIX[dtype]}"
            figures.note(name, run_quire(planes[dtype, "fast"], jobs))
            figures.note(f"{name}/hf-static16", run_transformers(peers[dtype], jobs, 16))
            figures.note(f"{name}/hf-single", run_transformers(peers[dtype], jobs[::4], 1))
            figures.note(f"{name}/reference", run_quire(planes[dtype, "reference"], jobs))
    rows = []
    for dtype in dtypes:
        name = f"pocket-64{SUFFIX[dtype]}"
        against = {peer: f"{name}/{peer}" for peer in ("hf-single", "hf-static16", "reference")}
        if dtype == "bfloat16" and "float32" in dtypes:
            against["hf-single in float32"] = "pocket-64-float32/hf-single"
        rows.append(figures.row(name, f"tok/s, {dtype}", against))
    return rows


def llama_125m(figures: Figures, dtypes: list[str], repeat: int) -> list[Row]:
    rng = Random(0)
    jobs = [Job([rng.randrange(10, SHAPE.vocab_size) for _ in range(32)], 64) for _ in range(16)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(SHAPE).bfloat16().save_pretrained(folder)
        for dtype in dtypes:
            llm = LLM(folder, dtype=dtype, max_model_len=128, num_blocks=200)
            peer = load_transformers(Path(folder), dtype)
            for count in (1, 16):
                name = f"125m-b{count}{SUFFIX[dtype]}"
                run_quire(llm, jobs[:count])
                run_transformers(peer, jobs[:count], count)
                for _ in range(repeat):
                    figures.note(name, run_quire(llm, jobs[:count]))
                    figures.note(f"{name}/hf", run_transformers(peer, jobs[:count], count))
                rows.append(figures.row(name, f"tok/s, {dtype}", {"hf": f"{name}/hf"}))
    return rows


PARTS = {"pocket": pocket, "125m": llama_125m}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--dtypes", default=",".join(SUFFIX))
    parser.add_argument("--json")
    args = parser.parse_args()
    figures, dtypes = Figures(), args.dtypes.split(",")
    rows = [row for part in args.only.split(",") for row in PARTS[part](figures, dtypes, args.repeat)]
    show(rows, f"The fast data plane on a CPU, {torch.get_num_threads()} threads")
    if args.json:
        write(args.json, rows, "python -m benchmarks.cpu")


if __name__ == "__main__":
    main()
