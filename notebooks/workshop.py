"""What the notebooks share: recording the engine at work, and the three pictures that come again and again.

A picture is drawn from a trace that the engine's own recorder wrote (docs/trace.md), never from a model of it.
"""

from __future__ import annotations

import gzip
import json
import warnings
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm shows its bars as text, which will do

from quire import LLM  # noqa: E402
from quire.reference.trace import Trace, read_trace  # noqa: E402
from quire.ui import component  # noqa: E402

PALETTE = ["#2f6db3", "#e08a1e", "#2a9d74", "#c44e6b", "#7a5ab5", "#8c6d46", "#4fb3d0", "#b5a51f", "#6b7280", "#d06fb8"]
FREE, RESERVED = "#f1f3f5", "#cfd4da"
INK = "#1f2430"


def colour(i: int) -> tuple[float, float, float]:
    """The colour of request or sequence ``i``."""
    return to_rgb(PALETTE[i % len(PALETTE)])


def user(text: str) -> list[dict[str, str]]:
    """A conversation with one turn."""
    return [{"role": "user", "content": text}]


@dataclass
class Recording:
    """What a piece of work returned, the engine's trace of it (also as it was written), and its last statistics."""

    result: Any
    trace: Trace
    lines: str
    stats: Any


def record(work: Callable[[LLM], Any], **engine_args: Any) -> Recording:
    """Run ``work(llm)`` on a new engine on pocket that records every step."""
    with TemporaryDirectory() as folder:
        with LLM("pocket", trace=folder, **engine_args) as llm:
            result = work(llm)
            stats = llm.stats()
        path = Path(folder) / "steps.jsonl"
        return Recording(result, read_trace(path), path.read_text("utf-8"), stats)


def drain(llm: LLM) -> None:
    """Step until every request has ended."""
    while llm.engine.has_unfinished():
        llm.engine.step()


def watch(recording: Recording, views: str, step: int = 0, height: int = 400) -> HTML:
    """The recording as a film: quire's drawing component in a frame of its own, to be played, paused and pointed at.

    views   of: blocks tables schedule usage prefix speculation
    step    that is shown first

    Component and trace travel compressed in the notebook, so that it shows them without a server or a network.
    """
    film = "document.querySelector('quire-trace')"
    script = f"{component()};{film}.load({json.dumps(recording.lines)});{film}.seek({step});"
    packed = b64encode(gzip.compress(script.replace("</", "<\\/").encode(), mtime=0)).decode()
    unpack = """
        const bytes = Uint8Array.from(atob(document.currentScript.dataset.packed), (c) => c.charCodeAt(0));
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
        new Response(stream).text().then((text) => {
          const script = document.createElement("script");
          script.textContent = text;
          document.body.append(script);
        });"""
    body = f'<quire-trace views="{views}"></quire-trace><script data-packed="{packed}">{unpack}</script>'
    page = escape(f'<body style="margin:0">{body}')
    style = f"width:100%;height:{height}px;border:0"
    return HTML(f'<div><iframe title="the engine, step by step" style="{style}" srcdoc="{page}"></iframe></div>')


def draw_steps(ax: Axes, trace: Trace, *, places: int | None = None, label: bool = True) -> None:
    """Who computed what in which step: a column per step, a line per place in the batch, a colour per sequence.

    Full colour is a decode, pale a prompt chunk with its number of tokens, white an empty place.
    """
    owners: dict[int, int] = {}
    width = len(trace.steps)
    height = places or max(len(step["plan"]["seqs"]) for step in trace.steps)
    image = np.ones((height, width, 3))
    line_of: dict[int, int] = {}
    for x, step in enumerate(trace.steps):
        planned = {seq["seq_id"]: seq for seq in step["plan"]["seqs"]}
        line_of = {seq_id: y for seq_id, y in line_of.items() if seq_id in planned}
        for seq_id, seq in planned.items():
            owners.setdefault(seq_id, len(owners))
            if seq_id not in line_of:
                line_of[seq_id] = next(y for y in range(height) if y not in line_of.values())
            y = line_of[seq_id]
            decode = seq["n"] - seq["n_draft"] == 1
            image[y, x] = np.array(colour(owners[seq_id])) if decode else 0.45 * np.array(colour(owners[seq_id])) + 0.55
            if label and not decode and width <= 60:
                ax.text(x, y, seq["n"], ha="center", va="center", fontsize=7, color=INK)
    grid(ax, image)
    ax.set(xlabel="step of the engine", ylabel="place in the batch")


def draw_tables(ax: Axes, step: dict[str, Any], names: dict[int, str] | None = None) -> None:
    """The block tables in a step: a line per sequence, in each cell a KV block; shared ones are ringed."""
    tables = {row: table for row, table in sorted(step["tables"].items()) if table}
    held = [block for table in tables.values() for block in table]
    for y, table in enumerate(tables.values()):
        for x, block in enumerate(table):
            shared = held.count(block) > 1
            face = (*colour(block), 0.75 if shared else 0.3)
            edge = INK if shared else "white"
            ax.add_patch(plt.Rectangle((x + 0.04, y + 0.08), 0.92, 0.84, facecolor=face, edgecolor=edge, linewidth=1.4))
            ax.text(x + 0.5, y + 0.5, block, ha="center", va="center", fontsize=9, color=INK)
    longest = max(len(table) for table in tables.values())
    ax.set(xlim=(0, longest), ylim=(len(tables), 0))
    ax.set_xticks(np.arange(longest) + 0.5, range(longest))
    ax.set_yticks(np.arange(len(tables)) + 0.5, [(names or {}).get(row, f"row {row}") for row in tables])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def grid(ax: Axes, image: np.ndarray) -> None:
    """An image [height, width, 3] as cells with thin white lines between them, however many there are."""
    height, width = image.shape[:2]
    ax.imshow(image, aspect="auto", interpolation="nearest", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    if width <= 150:
        ax.vlines(np.arange(width + 1) - 0.5, -0.5, height - 0.5, color="white", linewidth=0.8)
    if height <= 60:
        ax.hlines(np.arange(height + 1) - 0.5, -0.5, width - 0.5, color="white", linewidth=0.8)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
