"""What happens to links on their way to the site (docs/hooks/stage.py)."""

from __future__ import annotations

import logging
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest

from tests.conftest import ROOT

PAGE = "docs/internals/journey.md"
SCHEDULER = "../../reference/control/scheduler.py"


@pytest.fixture(scope="module")
def stage() -> ModuleType:
    spec = spec_from_file_location("stage", ROOT / "docs" / "hooks" / "stage.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def staged(stage: ModuleType, text: str) -> str:
    pages = {PAGE: text, "docs/trace.md": "# Traces\n", "CONTRIBUTING.md": "# Working on quire\n"}
    return stage.relink(text, PAGE, pages, set())


def test_a_name_in_a_source_file_leads_to_its_line_of_today(stage) -> None:
    lines = (ROOT / "reference" / "control" / "scheduler.py").read_text("utf-8").splitlines()
    line = next(i for i, line in enumerate(lines, 1) if line.startswith("    def schedule("))
    there = "../source/reference/control/scheduler_py.html"
    assert staged(stage, f"[`Scheduler.schedule`]({SCHEDULER})") == f"[`Scheduler.schedule`]({there}#L-{line})"
    assert staged(stage, f"[the scheduler]({SCHEDULER})") == f"[the scheduler]({there})"
    assert staged(stage, f"[here]({SCHEDULER}#L7)") == f"[here]({there}#L-7)"


@pytest.mark.parametrize("link", [f"[`Scheduler.gone`]({SCHEDULER})", "[a page](gone.md)", "[outside](../../../x)"])
def test_what_leads_nowhere_is_a_warning(stage, caplog, link: str) -> None:
    with caplog.at_level(logging.WARNING):
        staged(stage, link)
    assert caplog.records and PAGE in caplog.text  # which the strict build makes an error


def test_pages_from_outside_docs_have_their_place_and_titles_stand_for_file_names(stage) -> None:
    assert staged(stage, "[how](../../CONTRIBUTING.md#tests)") == "[how](../project/contributing.md#tests)"
    assert staged(stage, "[trace.md](../trace.md#look)") == "[Traces](../trace.md#look)"


def test_code_and_addresses_stay_as_they_are(stage) -> None:
    for text in (
        "[out](https://example.com/x.py)",
        "```\n[`x`](y.py)\n```",
        "- a\n\n    ```\n    [`x`](y.py)\n    ```\n",
        "[below](#down)",
    ):
        assert staged(stage, text) == text
