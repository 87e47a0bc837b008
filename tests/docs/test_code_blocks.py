"""Every code block on every page: Python is executed, commands are understood by the program, data parses.

A page is a script. Its Python blocks run in order, in one namespace and in an empty folder; what stands at
localhost:8000 is the embedded model behind a real server. Output that a page shows must be what was printed: comments
at the end of a block, or an indented or ``text`` block right behind it ("…" stands for any lines in between).

    <!-- not run: needs a GPU -->     before a block says why it is not

A Chinese page has the same code as its English one (but for comments), so it is compared, not run.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from _pytest.mark import ParameterSet

from quire import cli
from tests.conftest import ROOT, tracked

BLOCK = re.compile(
    r"(?P<reason>^[ \t]*<!-- not run: [^>]+ -->\n\s*)?"
    r"(?:^(?P<indent>[ \t]*)```[ \t]*(?P<language>[\w-]*)[^\n]*\n(?P<fenced>.*?)^(?P=indent)```[ \t]*$"
    r"|(?<=\n\n)(?P<plain>(?:^ {4}[^\n]*\n|^[ \t]*\n(?= {4}))+))",
    re.M | re.S,
)
ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):8000")
PAGES = [page for page in tracked() if page.suffix == ".md" and page.relative_to(ROOT).parts[0] not in ("zoo", "tests")]


@dataclass(frozen=True)
class Block:
    line: int
    language: str  # "" without one
    text: str
    skipped: bool  # a comment before it says why
    follows: bool  # nothing but space between it and the block before


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, fenced and indented."""
    text = page.read_text("utf-8")
    found, end = [], 0
    for match in BLOCK.finditer(text):
        source = textwrap.dedent(match["fenced"] if match["plain"] is None else match["plain"]).rstrip("\n") + "\n"
        if match["plain"] is not None and not re.search(r"\n\n$|\A$", text[: match.start("plain")]):
            continue
        line = text.count("\n", 0, match.start("fenced") if match["plain"] is None else match.start("plain")) + 1
        follows = not text[end : match.start()].strip()
        found.append(Block(line, match["language"] or "", source, bool(match["reason"]), follows))
        end = match.end()
    return found


def having(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", [page for page in having("python") if ".zh." not in page.name], ids=name)
def test_python_runs_and_prints_what_the_page_shows(page: Path, request, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    if any(ADDRESS.search(block.text) for block in found if block.language == "python" and not block.skipped):
        address = request.getfixturevalue("server").url
    namespace: dict[str, object] = {"__name__": "page"}
    for block, after in zip(found, [*found[1:], None]):
        if block.language != "python" or block.skipped:
            continue
        source = ADDRESS.sub(lambda _: address, block.text)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * (block.line - 1) + source, str(page), "exec"), namespace)
        if block.text.rstrip().rpartition("\n")[2].startswith("# "):
            assert printed.getvalue(), f"line {block.line}: the page shows output, and there is none"
            shown = squeezed(" ".join(re.findall(r"^# (.*)", block.text, re.M)))
            for line in printed.getvalue().splitlines():
                assert squeezed(line) in shown, f"line {block.line}: printed, but not shown"
        if after is not None and after.follows and after.language in ("", "text"):
            pattern = ".*".join(re.escape(squeezed(part)) for part in after.text.split("…"))
            assert re.fullmatch(pattern, squeezed(printed.getvalue())), f"line {after.line}:\n{printed.getvalue()}"


@pytest.mark.parametrize("page", [page for page in having("python") if ".zh." in page.name], ids=name)
def test_translated_pages_have_the_same_code(page: Path) -> None:
    def code(path: Path) -> list[str]:
        return [ast.dump(ast.parse(block.text)) for block in blocks(path) if block.language == "python"]

    assert code(page) == code(page.with_name(page.name.replace(".zh.", ".")))


def commands() -> list[ParameterSet]:
    """Every line of a block that calls the program, on whichever page."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language not in ("", "bash", "console"):
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:\$ )?(?:.*[|&] *)?(quire (?!:)\S.*|quire$)", line):
                    found.append(pytest.param(match[1], id=f"{name(page)}:{match[1]}"))
    return found


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str, monkeypatch) -> None:
    words = shlex.split(command, comments=True)
    for word in ("|", ">", "&", "&&", ";"):
        words = words[: words.index(word)] if word in words else words
    for module in cli.COMMANDS:
        monkeypatch.setattr(f"quire.cli.{module}.run", lambda arguments: 0)
    assert cli.main(words[1:]) == 0


@pytest.mark.parametrize("page", having("bash"), ids=name)
def test_curl_is_answered(page: Path, request) -> None:
    for block in blocks(page):
        if block.language != "bash" or block.skipped or not block.text.startswith("curl "):
            continue
        url, content, headers = "", None, {}
        words = iter(shlex.split(block.text.replace("\\\n", ""))[1:])
        for word in words:
            if word == "-H":
                header, _, value = next(words).partition(": ")
                headers[header] = value
            elif word == "-d":
                content = next(words)
            elif not word.startswith("-"):
                url = ADDRESS.sub(request.getfixturevalue("server").url, word)
        httpx.request(
            "POST" if content else "GET", url, headers=headers, content=content, timeout=300
        ).raise_for_status()


@pytest.mark.parametrize("page", having("json", "yaml"), ids=name)
def test_data_parses(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("json", "yaml") and not block.skipped:
            assert (json.loads if block.language == "json" else yaml.safe_load)(block.text), f"line {block.line}"
