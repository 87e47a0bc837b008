"""The notebooks: each runs as a learner gets it, and what is committed is what it printed.

A cell's text is compared with that of this run up to its numbers, which are the machine's; cells whose words depend on
the machine, too, are tagged "varies". Figures have to be there, and are not compared.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
import tokenize
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("[0-9][0-9]-*.ipynb"))
LIMIT = 3 << 20
NEAR = 25  # lines


def load(name: str) -> ModuleType:
    """A module in notebooks/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"notebooks_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load("build")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / name, as_version=4)


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell printed and the text of its last value, without the numbers."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type == "execute_result":
            parts.append(output.data["text/plain"])
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", re.sub(r"\s+", " ", "".join(parts)))


def pictures(cell: nbformat.NotebookNode) -> int:
    """Figures, and films of the engine."""
    data = [output.get("data", {}) for output in cell.outputs]
    return sum("image/svg+xml" in each or "<iframe" in each.get("text/html", "") for each in data)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_and_is_committed_as_it_ran(name: str) -> None:
    committed, fresh = read(name), read(name)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    build.execute(fresh)
    number = 0
    for old, new in zip(committed.cells, fresh.cells):
        if old.cell_type != "code":
            continue
        number += 1
        assert old.execution_count == number, f"cell {number} was not run in order: run `python notebooks/build.py`"
        assert pictures(old) == pictures(new), f"cell {number}: run `python notebooks/build.py`"
        if "varies" not in old.metadata.get("tags", []):
            assert printed(old) == printed(new), f"cell {number}: run `python notebooks/build.py`"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_what_they_name(name: str) -> None:
    """Links into the source name a definition and lead there, or close by: `python notebooks/build.py --links` moves
    them along with the code, and may be forgotten for a change or two."""
    for cell in read(name).cells:
        if cell.cell_type != "markdown":
            continue
        for symbol, target, line in build.LINK.findall(cell.source):
            first, last = build.definition(FOLDER / target, symbol)
            near = range(first - NEAR, last + NEAR + 1)
            assert line and int(line) in near, f"{symbol} is in lines {first} to {last}, not {line or 'none'}"
        for target in re.findall(r"\]\(([^)#\s]+)", cell.source):
            assert "://" in target or (FOLDER / target).exists(), target


def test_links_are_moved_to_their_definitions() -> None:
    file = "../reference/control/block_pool.py"
    text = f"see [`BlockPool.allocate`]({file}#L1) and [`BlockPool`]({file})"
    lines = (FOLDER / file).read_text("utf-8").splitlines()
    for name, line in re.findall(r"\[`([\w.]+)`\]\([^)]*#L(\d+)\)", build.relink(text)):
        assert name.rpartition(".")[2] in lines[int(line) - 1]
    with pytest.raises(KeyError, match="no Nonsense"):
        build.relink("[`Nonsense`](../reference/control/block_pool.py)")


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_asks_predicts_and_checks(name: str) -> None:
    notebook = read(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert re.match(rf"# {name[:2]} · ", prose)
    assert re.search(r"^\*\*[^*]+\?[^*]*\*\*", prose, re.M), "it begins with a question"
    assert "## Predict" in prose and "prediction" in code
    assert f'check("{name[:2]}-a"' in code
    assert build.LINK.search(prose), "it leads into the source"


def test_exercises_are_those_of_the_notebooks() -> None:
    from quire.learn import exercises

    cells = [cell.source for name in NAMES for cell in read(name).cells]
    assert [e for cell in cells for e in re.findall(r'^check\("(.+?)"', cell, re.M)] == exercises()


def test_size() -> None:
    sizes = {path.name: path.stat().st_size for path in Path(FOLDER).iterdir() if path.is_file()}
    assert sum(sizes.values()) < LIMIT, sizes


def test_the_index_lists_them_all() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert re.findall(r"\]\(([^)]+\.ipynb)\)", text) == NAMES


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, documented) and ast.get_docstring(n)]
    prose = {line for n in nodes for line in range(n.body[0].lineno, (n.body[0].end_lineno or 0) + 1)}
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({token.start[0] for token in tokens if token.type not in empty} - prose)
