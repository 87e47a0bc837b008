"""Bring the notebooks up to date: ``python notebooks/build.py [01 07 …]``. Needs ``pip install 'quire[notebooks]'``.

``--links`` executes nothing, and only moves the links.

Each is executed in place, so that every output in it was produced by its cells; what changes from run to run without
meaning anything (times of execution, ids) is left out. Links into the source get the lines where the names in them
stand now:

    [`KVManager.reserve`](../reference/control/kv_manager.py#L97)     the text names a definition in the file
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
LINK = re.compile(r"\[`([\w.]+)(?:\(\))?`\]\((\.\./[\w/.]+\.py)(?:#L(\d+))?\)")


def notebooks() -> list[Path]:
    return sorted(HERE.glob("[0-9][0-9]-*.ipynb"))


def definition(path: Path, name: str) -> tuple[int, int]:
    """First and last line of a class, function, method or assignment, by its dotted name. KeyError if there is none."""
    body: list[ast.stmt] = ast.parse(path.read_text("utf-8")).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            raise KeyError(f"{path.name} defines no {name}")
        body = getattr(found, "body", [])
    assert found is not None
    return found.lineno, found.end_lineno or found.lineno


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def relink(text: str) -> str:
    """The text with the lines of its links as they are now."""

    def line(match: re.Match[str]) -> str:
        name, target = match[1], match[2]
        return f"[`{name}`]({target}#L{definition(HERE / target, name)[0]})"

    return LINK.sub(line, text)


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a new kernel, as a learner would: in this folder, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SOURCE_DATE_EPOCH": "0"}
    environment["PYTHONPATH"] = str(HERE.parent)  # this checkout's quire, whatever else is installed
    client = NotebookClient(
        notebook, timeout=240, startup_timeout=240, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main(arguments: list[str]) -> None:
    wanted = [argument for argument in arguments if argument != "--links"]
    for path in notebooks():
        if wanted and path.name[:2] not in wanted:
            continue
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(cell.source)
        if "--links" not in arguments:
            execute(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
