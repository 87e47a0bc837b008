"""docs/clients.md, as printed but for the address: what each snippet prints is what its comments promise."""

from __future__ import annotations

import contextlib
import io
import re
import shlex

import httpx
import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS = "http://localhost:8000"


def blocks(language: str) -> dict[str, str]:
    """The one snippet of each section that has one, by the section's title."""
    sections = (section.partition("\n") for section in PAGE.split("\n## ")[1:])
    found = {title: re.findall(rf"```{language}\n(.*?)```", text, flags=re.S) for title, _, text in sections}
    return {title: snippet for title, snippets in found.items() for snippet in snippets}


def test_every_client_has_its_section() -> None:
    assert set(blocks("python")) == {"The openai SDK", "LangChain", "instructor", "litellm"}


def test_curl(server) -> None:
    command, url, *options = shlex.split(blocks("bash")["curl"].replace("\\\n", ""))
    assert command == "curl" and options[::2] == ["-H", "-d"]
    name, _, value = options[1].partition(": ")
    answer = httpx.post(url.replace(ADDRESS, server.url), headers={name: value}, content=options[3], timeout=60)
    assert answer.raise_for_status().json()["choices"][0]["text"] == " there was a kind ant named Mona. Mona had lost a"


@pytest.mark.parametrize("title", blocks("python"))
def test_python(server, title: str) -> None:
    source = blocks("python")[title]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source.replace(ADDRESS, server.url), f"docs/clients.md: {title}", "exec"), {"__name__": "page"})
    assert printed.getvalue().splitlines() == [line.removeprefix("# ") for line in re.findall("^# .*", source, re.M)]
