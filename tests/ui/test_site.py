"""The documentation site: it builds strictly (links, anchors and names in the source lead somewhere), asks nothing of
the network, and works in a browser: traces are drawn, the search finds, in light and dark, in English and Chinese.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import pytest
from filelock import FileLock

from tests.conftest import ROOT

OUTSIDE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(https?:)?//")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once for all test processes; a warning fails it."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr  # (with --quiet warnings would not count)
    return folder


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_page_takes_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        found = OUTSIDE.search(page.read_text("utf-8"))
        assert not found, f"{page.relative_to(site)}: {found[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text("utf-8")), style


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["", "zh/"])
def test_a_page_in_the_browser(address: str, open_context, screenshot, scheme, language) -> None:
    page = open_context(color_scheme=scheme).new_page()
    page.goto(f"{address}/{language}")
    page.wait_for_function("document.querySelector('quire-trace').length > 0")  # its file has been found
    page.wait_for_function(
        "scheme => document.querySelector('quire-trace').getAttribute('theme') === scheme", arg=scheme
    )
    screenshot(page, f"site-{language.rstrip('/') or 'en'}-{scheme}")


def test_a_notebooks_film_is_in_the_sites_colours(address: str, open_context) -> None:
    page = open_context(color_scheme="dark").new_page()
    page.goto(f"{address}/notebooks/04-sharing/")
    page.frame_locator("iframe").first.locator("quire-trace[theme=dark]").wait_for()


@pytest.mark.parametrize(("language", "words"), [("", "copy on write"), ("zh/", "缓存")])
def test_the_search_finds(address: str, page, language: str, words: str) -> None:
    page.goto(f"{address}/{language}?{urlencode({'q': words})}")
    page.locator(".md-search-result__item").first.wait_for()


def test_a_name_in_the_source_is_shown_at_its_line(address: str, page) -> None:
    page.goto(f"{address}/internals/journey/")
    page.get_by_role("link", name="Scheduler.schedule", exact=True).first.click()
    assert "def schedule" in page.locator("span:target").inner_text()
