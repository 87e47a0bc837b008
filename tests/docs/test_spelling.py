"""Spelling, of what people read: pages, notebooks, and the comments and docstrings of the code."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT, tracked


def test_spelling() -> None:
    files = [file for file in tracked() if file.suffix in (".md", ".py", ".js", ".css", ".yml", ".toml", ".ipynb")]
    files = [str(file) for file in files if file.relative_to(ROOT).parts[0] != "zoo" and ".zh." not in file.name]
    checked = subprocess.run([sys.executable, "-m", "codespell_lib", *files], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
