"""One form for measured figures, shared by ``quire bench``, ``quire.zoo.evaluate`` and the programs in ``benchmarks/``.

A figure is a ``Row``. Rows are printed as a table and, with ``--json PATH``, written together with what is needed to
have them again: date, hardware, versions and the command.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A figure. ``vs`` maps a peer or a limit to the ratio against it, measured in the same run; above 1 is better."""

    name: str
    value: float
    unit: str
    vs: Mapping[str, float] = field(default_factory=dict)


def hardware() -> str:
    """Processor, number of usable cores and, if torch is in use and sees one, the GPU."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines())
        processor = next((value.strip() for key, _, value in lines if key.strip() == "model name"), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{processor}, {cores} cores"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    return "; ".join(parts)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("quire", "torch", "transformers", "triton", "numpy", "numba", "llguidance", "xgrammar"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def show(rows: Sequence[Row], title: str) -> None:
    """Print rows as a table; ratios read as "3.1× peer"."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("row", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("against")
    for row in rows:
        ratios = ", ".join(f"{ratio:.2f}× {peer}" for peer, ratio in row.vs.items())
        table.add_row(row.name, f"{row.value:,.3f}" if row.value < 10 else f"{row.value:,.1f}", row.unit, ratios)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def write(path: Path | str, rows: Sequence[Row], program: str) -> None:
    """Write rows and their circumstances as JSON. ``program`` is how it was started, such as "quire bench"."""
    meta = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "command": shlex.join([*shlex.split(program), *sys.argv[1:]]),
    }
    text = json.dumps({"meta": meta, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
