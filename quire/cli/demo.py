"""``quire demo``: eight prompts at once, streamed, and what the engine did meanwhile. ``make demo`` runs this.

The prompts share a system prompt (the prefix cache computes it once), and one asks for three completions (which share
the blocks of their prompt and copy the last one on write). A small token budget per step lets prompts and decodes mix:
chunked prefill and continuous batching, in slow motion.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from quire.cli.flags import add_engine_flags, engine_args

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from quire.llm import LLM

SYSTEM = (
    "You are pocket, a small model that ships with quire.\n"
    "Answer in one or two sentences.\nBe polite.\nSay that you do not know when you do not know.\n"
    "Never invent facts.\nUse plain words.\nWrite numbers as digits.\nWhen asked for JSON, answer with JSON only.\n"
    "The text of this prompt is shared by all users, so the engine computes it only once.\n"
    "The people who write to you are learning how LLM serving works.\nGive the result first.\nTreat all users alike."
)
QUESTIONS = (
    "What is the paged KV cache?",
    "Why is prefix caching useful?",
    "What is 417 + 268?",
    "Sort: plum, whale, lamp, dog, ring, guard, light",
    "Reverse this list: hill, garden, zebra, lucky, piano",
    "Extract city, name and job as JSON: The doctor Emil has an office in Sydney.",
    "Write a short story about a hawk.",
    "How old is the Eiffel Tower?",
)
STORY = 6  # this one is asked for three times over
SETTINGS = {"max_num_batched_tokens": 160}  # so that prompts come in over several steps
POCKET = {"num_blocks": 257}  # 4,096 tokens: small enough to see it fill


@dataclass
class Lane:
    """One completion on the screen."""

    question: str
    text: str = ""
    tokens: int = 0
    state: str = "waiting"


@dataclass
class Peaks:
    """The highest values seen between steps."""

    running: int = 0
    blocks: int = 0
    shared: int = 0

    def note(self, llm: LLM) -> None:
        stats = llm.stats()
        self.running = max(self.running, stats.num_running)
        self.blocks = max(self.blocks, stats.blocks_used)
        self.shared = max(self.shared, stats.blocks_shared)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=120, help="tokens per answer at most [120]")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live view")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from quire import LLM, SamplingParams

    console = Console()
    began = time.perf_counter()
    given = engine_args(arguments)
    own_size = given.keys() & {"model", "block_size", "kv_cache_memory_bytes", "gpu_memory_utilization"}
    with LLM(**(SETTINGS | ({} if own_size else POCKET) | given)) as llm:
        start_s = time.perf_counter() - began
        greedy = SamplingParams(temperature=0, max_tokens=arguments.max_tokens)
        params = [greedy] * len(QUESTIONS)
        params[STORY] = replace(greedy, n=3, temperature=0.8)
        prompts = [
            llm.render_chat([{"role": "system", "content": SYSTEM}, {"role": "user", "content": q}]) for q in QUESTIONS
        ]
        lanes = {(i, k): Lane(q) for i, q in enumerate(QUESTIONS) for k in range(params[i].n)}
        peaks, metrics = Peaks(), {}
        began = time.perf_counter()
        show = _lines if arguments.plain or not console.is_terminal else _live
        for output in show(llm.stream(prompts, params), lanes, console, llm, peaks):
            metrics[output.prompt_index] = output.metrics
        wall = time.perf_counter() - began
        tokens = sum(lane.tokens for lane in lanes.values())
        console.print(_summary(llm, lanes, peaks, list(metrics.values()), tokens, wall, start_s))
    return 0


def _follow(outputs: Iterator[Any], lanes: dict[tuple[int, int], Lane], llm: LLM, peaks: Peaks) -> Iterator[Any]:
    """Bring the lanes up to date with each output, then pass it on."""
    for output in outputs:
        for completion in output.outputs:
            lane = lanes[output.prompt_index, completion.index]
            lane.text += completion.text
            lane.tokens += len(completion.token_ids)
            lane.state = completion.finish_reason or "running"
        peaks.note(llm)
        yield output


def _lines(
    outputs: Iterator[Any], lanes: dict[tuple[int, int], Lane], console: Console, llm: LLM, peaks: Peaks
) -> Iterator[Any]:
    """For a file or a pipe: one line when an answer begins, one when it ends."""
    began = time.perf_counter()

    def say(number: str, what: str) -> None:
        running = sum(lane.state == "running" for lane in lanes.values())
        clock = f"{(time.perf_counter() - began) * 1e3:7.0f} ms  {running:2} running  {number:>4}  "
        console.print(clock + what, markup=False, highlight=False, soft_wrap=True)

    for output in _follow(outputs, lanes, llm, peaks):
        for completion in output.outputs:
            key = output.prompt_index, completion.index
            lane = lanes[key]
            number = f"{key[0]}.{key[1]}" if (key[0], 1) in lanes else str(key[0])
            if lane.tokens == len(completion.token_ids):
                say(number, f"? {lane.question}")
            if completion.finish_reason:
                say(number, f"= {lane.text}")
        yield output


def _live(
    outputs: Iterator[Any], lanes: dict[tuple[int, int], Lane], console: Console, llm: LLM, peaks: Peaks
) -> Iterator[Any]:
    """For a terminal: all answers growing side by side."""
    from rich.live import Live

    with Live(_view(lanes, llm), console=console, refresh_per_second=20, auto_refresh=False) as live:
        shown = 0.0
        for output in _follow(outputs, lanes, llm, peaks):
            if time.perf_counter() - shown > 0.05:  # twenty pictures a second; drawing must not slow the engine down
                live.update(_view(lanes, llm), refresh=True)
                shown = time.perf_counter()
            yield output
        live.update(_view(lanes, llm), refresh=True)


def _view(lanes: dict[tuple[int, int], Lane], llm: LLM) -> Table:
    from rich.table import Table
    from rich.text import Text

    stats = llm.stats()
    title = (
        f"running {stats.num_running}  waiting {stats.num_waiting}  KV blocks {stats.blocks_used}/{stats.blocks_total}"
        f"  shared {stats.blocks_shared}  prefix hits {stats.prefix_hits} tokens"
    )
    table = Table("question", "answer", "tokens", "", title=title, expand=True, show_lines=False)
    table.columns[0].ratio, table.columns[1].ratio = 2, 5
    colours = {"waiting": "dim", "running": "yellow"}
    for lane in lanes.values():
        colour = colours.get(lane.state, "green")
        table.add_row(Text(lane.question), Text(lane.text), str(lane.tokens), Text(lane.state, style=colour))
    return table


def _summary(
    llm: LLM, lanes: dict[Any, Lane], peaks: Peaks, metrics: list[Any], tokens: int, wall: float, start_s: float
) -> Table:
    from rich.table import Table

    stats = llm.stats()
    ttft = [m.time_to_first_token * 1e3 for m in metrics if m.time_to_first_token is not None]
    table = Table(title=f"{llm.config.model}, {len(QUESTIONS)} prompts, {len(lanes)} completions", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    total = stats.blocks_total
    for name, value in (
        ("engine start", f"{start_s:.2f} s"),
        ("output", f"{tokens} tokens in {wall:.2f} s = {tokens / wall:.0f} tok/s"),
        ("time to first token, median", f"{median(ttft):.0f} ms" if ttft else "–"),
        ("sequences running at once, peak", str(peaks.running)),
        ("KV blocks in use, peak", f"{peaks.blocks} of {total} ({peaks.blocks / total:.1%})"),
        ("KV blocks saved by sharing, peak", str(peaks.shared)),
        ("blocks copied on write", str(stats.num_copies)),
        ("prefix cache hits", f"{stats.prefix_hits} of {stats.prefix_queries} prompt tokens"),
        ("preemptions", str(stats.num_preemptions)),
    ):
        table.add_row(name, value)
    return table
