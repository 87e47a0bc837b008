"""Chinese pages are in step with the English ones: same structure, same code, same links, same traces, same figures.

What is compared is what does not depend on the language. Who changes a page in English sees here what its translation
lacks; the words themselves no test can check.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, tracked

OTHERS = {ROOT / "README.zh-CN.md": ROOT / "README.md"}
PAIRS = OTHERS | {p: p.with_name(p.name.replace(".zh.md", ".md")) for p in tracked() if p.name.endswith(".zh.md")}

FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=-->\n))(?: {4}(?!<quire-trace).*\n|\n(?= {4}))+")
CARDS = re.compile(r"^<div.*?^</div>", re.M | re.S)  # text that is indented, too, but no code
COMMENT = re.compile(r" +# .*$", re.M)  # in code; these are for the reader
LINK = re.compile(r"(?<!!)\[[^\[\]]*\]\(([^()\s]+)\)|(?<=<)(https?://[^>\s]+)(?=>)")


def facts(page: Path) -> dict[str, list[str]]:
    """All of a page that a translation must have too, by kind, in the page's order where order matters."""
    text = page.read_text("utf-8")
    code = FENCED.findall(text) + INDENTED.findall(CARDS.sub("", FENCED.sub("", text)))
    prose = INDENTED.sub("", FENCED.sub("", text))
    names = {other.name for pair in OTHERS.items() for other in pair}  # the two READMEs link to each other
    return {
        "code": [COMMENT.sub("", block).strip("\n") for block in code],
        "headings": re.findall(r"^(#+) ", prose, re.M),
        "links": sorted(url for found in LINK.findall(prose) for url in found if url and url not in names),
        "traces": re.findall(r"<quire-trace [^>]*>", prose),
        "tabs": re.findall(r"^(=== )", prose, re.M),
        "rows of tables": [str(line.count("|")) for line in re.findall(r"^\|.*\|$", prose, re.M)],
        "items of lists": re.findall(r"^(- |\d+\. )", prose, re.M),
        "figures": sorted(re.findall(r"\d+(?:[.,]\d+)+", prose)),
        "code in the text": sorted({" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)}),
    }


@pytest.mark.parametrize("page", sorted(PAIRS), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translation_has_all_that_the_page_has(page: Path) -> None:
    assert PAIRS[page].exists(), f"{page.name} translates nothing"
    theirs, ours = facts(PAIRS[page]), facts(page)
    for kind, expected in theirs.items():
        assert ours[kind] == expected, kind


@pytest.mark.parametrize("folder", ["start", "concepts"])
def test_every_page_for_newcomers_is_translated(folder: str) -> None:
    pages = {page for page in tracked() if page.parent == ROOT / "docs" / folder and page.suffix == ".md"}
    assert pages and {page for page in pages if ".zh." not in page.name} <= set(PAIRS.values())
