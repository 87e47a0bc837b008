"""The films in the notebooks, as committed: they play in a browser, from the notebook alone."""

from __future__ import annotations

import re

import nbformat

from tests.conftest import ROOT


def films() -> list[tuple[str, str]]:
    """(notebook, HTML) of each cell that shows the engine at work."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
        found += [(path.name, html) for html in outputs if "<iframe" in html]
    return found


def test_films_play(open_context) -> None:
    """The fixture refuses every other address, and fails if a page has an error."""
    page = open_context().new_page()
    assert len({name for name, _ in films()}) >= 4
    for _, html in films():
        page.set_content(html)
        film = page.frame_locator("iframe").locator("quire-trace")
        film.locator(".where").filter(has_text=re.compile(r"\d+ / \d+")).wait_for()
        length = int(re.findall(r"\d+", film.locator(".where").inner_text())[1])
        film.get_by_role("button", name="First step").click()
        film.locator(".where").filter(has_text=re.compile(rf"^1 / {length} ")).wait_for()
        film.locator(".says", has_text=re.compile(r"^Step 0: .*prompt")).wait_for()
