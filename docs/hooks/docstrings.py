"""quire's docstrings as Markdown: their tables of names become tables, their indented blocks stay code.

    name, other    what it is, perhaps
                   over two lines

A griffe extension, which mkdocstrings runs over every object that it documents.
"""

from __future__ import annotations

import re

import griffe

ENTRY = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*)$")


class Tables(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = tables(obj.docstring.value)


def tables(text: str) -> str:
    """The text with its tables of names, and ``::`` blocks, as Markdown has them."""
    out: list[str] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        entry = ENTRY.match(line)
        if entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            rows.append([names, entry[2]])
            continue
        if rows and line.startswith("    "):
            rows[-1][1] += f" {line.strip()}"
            continue
        if rows:
            cells = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
            out += ["", "| name | meaning |", "| --- | --- |", *(f"| {row} |" for row in cells), ""]
            rows = []
        out.append(re.sub(r"::$", ":", line))
    return "\n".join(out).rstrip()
