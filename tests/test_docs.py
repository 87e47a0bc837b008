"""The pages: those written by programs are as the code has it, and links lead to files. tests/docs runs their code."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from tests.conftest import ROOT, tracked

PAGES = sorted(file for file in tracked() if file.suffix == ".md")


@pytest.mark.parametrize("name", ["generate_parameters", "generate_api", "generate_errors", "generate_from_vllm"])
def test_pages_written_by_programs_are_in_step_with_the_code(name: str) -> None:
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.PAGE.read_text(encoding="utf-8")
    assert text == module.page(), f"run `python docs/{name}.py`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_workflow_that_publishes_them_is_one() -> None:
    """Whether it succeeds only GitHub can say; that it is a workflow, we can."""
    workflow = ROOT / ".github" / "workflows" / "docs.yml"
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    subprocess.run(command, check=True)
