"""When speculation pays: the picture of docs/speculation.md, from what ``benchmarks.speculation --json`` has measured.

Left, what a step costs by its number of tokens, measured, and the line ``free_tokens + T`` that the controller believes
in. Right of it what the best number of drafts brings, by the chance that one more draft agrees: tokens per cost, where
a plain step has 1. Costs are those measured for each batch, not the line's; between measured k they are interpolated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHOWN = (1, 8, 32)  # requests at once, a curve each
Floats = npt.NDArray[np.float64]


def gain(rate: Floats, step: dict[int, float], draft: float) -> Floats:
    """The most tokens per cost over all k, and no less than the 1 of a plain step.

    rate    chances that one more draft agrees
    step    k -> cost of a step with k drafts per sequence, in plain steps of that batch
    draft   cost of one drafted token, likewise
    """
    measured = sorted(step)
    best = np.ones_like(rate)
    for k in range(1, measured[-1] + 1):
        tokens = sum(rate**i for i in range(k + 1))
        best = np.maximum(best, tokens / (np.interp(k, measured, [step[m] for m in measured]) + k * draft))
    return best


def draw(measured: Path | str, to: Path | str) -> None:
    """Write the picture. ``measured``: the file that ``--json`` wrote."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "quire"  # the same picture from the same figures, byte for byte
    from matplotlib import pyplot

    report: dict[str, Any] = json.loads(Path(measured).read_text(encoding="utf-8"))
    value = {row["name"]: row["value"] for row in report["rows"]}
    steps: dict[int, dict[int, float]] = {}
    for name in value:
        if name.startswith("step/"):
            batch, k = (int(part[1:]) for part in name.split("/")[1:])
            steps.setdefault(batch, {})[k] = value[name]
    figure, (cost, lookup, model) = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for batch, found in steps.items():
        cost.plot([batch * (1 + k) for k in found], list(found.values()), ".", color="tab:blue")
    tokens, free = np.array([1, max(b * (1 + k) for b in steps for k in steps[b])]), value["free-tokens"]
    cost.plot(tokens, (free + tokens) / (free + 1), color="tab:gray", label=f"{free:.0f} + T")
    cost.set(title="a step", xlabel="tokens T", ylabel="cost, in steps of one token")
    cost.legend()
    rate = np.linspace(0, 1, 101)
    for axes, title in ((lookup, "lookup"), (model, "draft model")):
        for batch in SHOWN:
            relative = {k: c / steps[batch][0] for k, c in steps[batch].items()}
            price = value[f"draft/b{batch}"] if axes is model else 0.0
            axes.plot(rate, gain(rate, relative, price), label=f"{batch} at once")
        axes.set(title=title, xlabel="chance that one more draft agrees", ylabel="tokens per cost", ylim=(0.9, None))
        axes.legend()
    figure.savefig(to, metadata={"Date": None})
