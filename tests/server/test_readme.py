"""The server's part of the README, as printed: its curl line, and its Python with the output that comments promise."""

from __future__ import annotations

import contextlib
import io
import re
import shlex

import httpx

from tests.conftest import ROOT


def block(language: str) -> str:
    """The code of a language in the section on the server."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## As a server\n")[2].partition("\n## ")[0]
    [found] = re.findall(rf"```{language}\n(.*?)```", section, flags=re.S)
    return found


def test_curl(server) -> None:
    command, url, *options = shlex.split(block("bash").replace("\\\n", ""))
    assert command == "curl" and options[::2] == ["-H", "-d"]
    name, _, value = options[1].partition(": ")
    url = url.replace("http://localhost:8000", server.url)
    answer = httpx.post(url, headers={name: value}, content=options[3], timeout=60).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"] == "417 + 268 = 685"


def test_python(server) -> None:
    source = block("python").replace("http://localhost:8000", server.url)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, "README.md", "exec"), {})
    promised = [line.removeprefix("# ") for line in source.splitlines() if line.startswith("# ")]
    headings = ("Stream.", "Structured outputs", "Tools.", "Responses,")
    assert printed.getvalue().splitlines() == [line for line in promised if not line.startswith(headings)]
