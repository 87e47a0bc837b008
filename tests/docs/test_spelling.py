"""Spelling, of what people read: pages, notebooks, and the comments and docstrings of the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat

from tests.conftest import ROOT, tracked

MEANT = "temprature,tempature,metod"  # wrong on purpose, in tests of what is said then


def test_spelling(tmp_path: Path) -> None:
    files = [
        file
        for file in tracked()
        if file.suffix in (".md", ".py", ".js") and file.relative_to(ROOT).parts[0] != "zoo" and ".zh" not in file.name
    ]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):  # what its cells say; figures hold anything
        files.append(tmp_path / notebook.name)
        files[-1].write_text("\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells), "utf-8")
    command = [sys.executable, "-m", "codespell_lib", "-L", MEANT, *map(str, files)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
