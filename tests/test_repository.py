"""What is tracked: not too much of it, and nothing that only makes sense on the machine where it was written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, tracked

MIB = 1 << 20
LIMIT = 45 * MIB

# The pieces are joined here so that this file does not contain what it looks for.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~$}-])/(?:" + "|".join(("home/", "Users/", "root/", "work/", "opt/", "mnt/")) + r")\w"
)
REGISTRIES = re.compile(
    "|".join(re.escape(host) for host in ("py" + "pi.org", "python" + "hosted.org", "download." + "pytorch.org")), re.I
)


def find(pattern: re.Pattern[str], text: str) -> list[str]:
    return [match.group() for match in pattern.finditer(text)]


def test_tracked_files_are_small_enough() -> None:
    sizes = {file: file.stat().st_size for file in tracked()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    shown = ", ".join(f"{file.relative_to(ROOT)} {size / MIB:.1f} MiB" for file, size in largest)
    assert sum(sizes.values()) < LIMIT, f"{sum(sizes.values()) / MIB:.1f} MiB; the largest are {shown}"


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine paths", "package registries"])
def test_no_trace_of_a_machine(pattern: re.Pattern[str]) -> None:
    """No absolute path of a developer's machine and no package registry's host: users choose theirs by PIP_ARGS."""
    found = []
    for file in tracked():
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # weights
        found += [f"{file.relative_to(ROOT)}: {hit}" for hit in find(pattern, text)]
    assert not found, "\n".join(found)


def test_the_patterns_find_what_they_should() -> None:
    for text in ("open('/" + "home/ada/x')", "cd /" + "work/quire", "see /" + "Users/ada"):
        assert find(MACHINE_PATHS, text)
    for text in ("~/work/x", "https://host/home/x", "reference/work/x", "$HOME/root/x", "/tmp/x", "/v1/models"):
        assert not find(MACHINE_PATHS, text)
    assert find(REGISTRIES, "https://PY" + "PI.org/simple")


@pytest.mark.parametrize("name", ["quire/reference", "quire/zoo"])
def test_links_are_relative(name: str) -> None:
    link = ROOT / name
    if link.is_symlink():  # a checkout without links is served by quire/__init__
        assert link.readlink() == Path("..") / link.name
