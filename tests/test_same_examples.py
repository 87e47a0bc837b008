"""The property tests see the same examples in every run, whichever tests the same process has run before."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st


def examples() -> list[tuple[int, str]]:
    found = []

    @given(st.integers(), st.text())
    def see(number: int, text: str) -> None:
        found.append((number, text))

    see()
    return found


def test_a_module_that_is_imported_changes_no_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Hypothesis reads the constants of every module of ours that it finds imported: see tests/conftest.py."""
    if request.config.getoption("--thorough"):
        pytest.skip("random examples were asked for")
    before = examples()
    (tmp_path / "news.py").write_text("NUMBERS = " + repr({n * 7919: f"word {n}" for n in range(1000, 1300)}))
    spec = spec_from_file_location("news", tmp_path / "news.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "news", module)
    assert examples() == before
