"""A real browser for tests of what people see: the system's Chromium, driven by Playwright, without a network.

Where there is no Chromium these tests are skipped; with QUIRE_BROWSER_TESTS set, as in CI, they fail instead. Pages
may talk to this machine only: any other address is refused, and fails the test. So does an error in a page's scripts.
``screenshot`` puts pictures into tests/ui/screenshots, to be looked at.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from quire.ui import static

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

    from tests.server.conftest import LiveServer

SCREENSHOTS = Path(__file__).parent / "screenshots"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb",
)  # fmt: skip
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
TIMEOUT = 120_000  # milliseconds: a loaded machine is no finding


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each module. Not for the whole run: while Playwright runs, this thread cannot run asyncio's tests."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing = "no Chromium here: apt-get install chromium"
        if os.environ.get("QUIRE_BROWSER_TESTS"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS), timeout=TIMEOUT)
        yield running
        running.close()


@pytest.fixture
def open_context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes browser contexts (Playwright's ``new_context`` arguments); at the end none has an error to show."""
    contexts, problems = [], []

    def guard(route) -> None:
        address = urlsplit(route.request.url)
        if address.scheme in ("http", "https") and address.hostname not in ("127.0.0.1", "localhost"):
            problems.append(f"a page asked for {route.request.url}")
            route.abort()
        else:
            route.continue_()

    def make(**options) -> BrowserContext:
        context = browser.new_context(**{"viewport": WIDE, **options})
        context.set_default_timeout(TIMEOUT)
        context.route("**/*", guard)
        context.on("weberror", lambda error: problems.append(f"an error in a page: {error.error}"))
        contexts.append(context)
        return context

    yield make
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(open_context: Callable[..., BrowserContext]) -> Page:
    """An empty page of 1280 by 800."""
    return open_context().new_page()


@pytest.fixture
def screenshot() -> Callable[[Page | Locator, str], Path]:
    """Takes a picture of a page (all of it) or of an element, as tests/ui/screenshots/NAME.png."""

    def take(what: Page | Locator, name: str) -> Path:
        SCREENSHOTS.mkdir(exist_ok=True)
        file = SCREENSHOTS / f"{name}.png"
        whole = {"full_page": True} if hasattr(what, "goto") else {}
        what.screenshot(path=file, animations="disabled", **whole)
        return file

    return take


@contextmanager
def serve_page(*servers: str) -> Iterator[str]:
    """The playground in front of these servers, as ``quire ui`` has it, but in a thread; its address."""
    from quire.cli.ui import meanings
    from quire.ui.app import server
    from tests.server.conftest import in_thread

    with in_thread(server(servers, meanings())) as url:
        yield url


@pytest.fixture(scope="session")
def engine_server() -> Iterator[LiveServer]:
    """The server that the playground of these tests is in front of: all six scenarios of the lab can be seen on it."""
    from quire.reference.config import EngineConfig
    from quire.server.config import ServerConfig
    from tests.server.conftest import serve

    engine = EngineConfig(
        num_blocks=145,
        max_num_batched_tokens=128,
        scheduling_policy="priority",
        speculative_config={"method": "ngram", "num_speculative_tokens": 4, "adaptive": False},
    )
    with serve(engine, server=ServerConfig(enable_trace=True, trace_text=True)) as live:
        yield live


@pytest.fixture
def unhurried(engine_server: LiveServer) -> Iterator[None]:
    """That server makes a hundred steps a second at most, so that a long answer goes on while somebody looks at it."""
    step = engine_server.engine.step

    def slowly() -> list:
        time.sleep(0.01)
        return step()

    engine_server.engine.step = slowly
    yield
    engine_server.engine.step = step


@pytest.fixture(scope="session")
def playground(engine_server: LiveServer) -> Iterator[str]:
    """The address of a playground in front of it."""
    with serve_page(engine_server.url) as url:
        yield url


@contextmanager
def own_port() -> Iterator[int]:
    """A free port that stays ours, so that a server can go away and come back there. It has to set SO_REUSEADDR."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


class Files(http.server.SimpleHTTPRequestHandler):
    """An empty page at /, and the component's files and recorded traces."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()


@contextmanager
def pages_at() -> Iterator[str]:
    """The address of a server of these files."""
    handler = functools.partial(Files, directory=str(static().parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def drawn(page) -> None:
    """Wait until what the component shows has followed its position: it draws with the next frame."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
