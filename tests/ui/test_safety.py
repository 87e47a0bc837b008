"""What must not happen: that a model's output runs, a key outlives its tab, or a page is lost with its server."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import BrowserContext, Page, expect

from quire.server.config import ServerConfig
from tests.server.conftest import eventually, serve
from tests.server.scripted import scripted_engine
from tests.server.test_process import quire_serve
from tests.ui.conftest import own_port, serve_page
from tests.ui.steps import answers, ended, open_page, send, setting, tab

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><b>bold</b> **strong** "
    "[link](javascript:window.hacked=3) <iframe srcdoc='<script>top.hacked = 4</script>'></iframe> $$x^2$$ # heading "
    '" onmouseover="window.hacked = 5'
)


def test_what_a_model_writes_is_shown_and_never_run(page: Page, screenshot) -> None:
    """Character by character, in the chat, in its tokens and in a comparison; none of it becomes an element."""
    with serve(engine=scripted_engine([(lambda prompt: True, HOSTILE)])) as live, serve_page(live.url) as url:
        open_page(page, url)
        send(page, "Hello <img src=x onerror='window.hacked = 6'>")
        ended(page)
        expect(answers(page)).to_have_text(HOSTILE)
        tab(page, "Tokens")
        page.locator(".tokens .tok").nth(3).hover()
        assert page.locator("#tokens :is(img, script, iframe, b, a)").count() == 0
        assert page.locator("#conversation :is(img, script, iframe, b, a, strong, h1)").count() == 0
        screenshot(page, "hostile")
        tab(page, "Compare")
        page.locator("#compare").click()
        expect(page.locator(".verdict")).to_be_visible()
        expect(page.locator(".compare .text").first).to_have_text(HOSTILE)
        assert page.locator(".compare .text :is(img, script, iframe, b, a)").count() == 0
        assert page.evaluate("window.hacked") is None


def test_a_key_is_asked_for_and_lives_as_long_as_its_tab(open_context) -> None:
    """It works after a reload, it is in no lasting store of the browser, and another tab has to ask for it."""
    context: BrowserContext = open_context()
    with serve(server=ServerConfig(api_key=("secret-key",))) as live, serve_page(live.url) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#server .down")).to_contain_text("wants an API key")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#server .down")).to_contain_text("Incorrect API key")
        page.get_by_label("API key").fill("secret-key")
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#server .up")).to_be_visible()
        send(page, "What is 2 + 3?")
        ended(page)
        tab(page, "Request")
        assert "QUIRE_API_KEY" in page.locator("#code").inner_text()
        assert "secret-key" not in page.locator("#code").inner_text()
        page.reload()
        expect(page.locator("#server .up")).to_be_visible()
        lasting = "JSON.stringify([localStorage, document.cookie]) + (await indexedDB.databases()).length"
        assert "secret-key" not in page.evaluate(f"(async () => {lasting})()")
        assert page.evaluate("sessionStorage.getItem('quire-key')") == "secret-key"
        other = context.new_page()
        other.goto(url)
        expect(other.locator("#server .down")).to_contain_text("wants an API key")


def test_the_engine_dies_in_an_answer_and_comes_back(page: Page, tmp_path) -> None:
    """On the playground that the server has at /ui itself: kill -9, a message that says so, and the page goes on."""
    with quire_serve(tmp_path, "--ui", "--restart-engine") as served:
        open_page(page, f"{served.url}/ui/")
        setting(page, "max_tokens", 1900)
        setting(page, "ignore_eos", True)
        send(page, "Tell me a story about a fox.")
        expect(answers(page)).not_to_be_empty()
        os.kill(served.children("engine")[0], signal.SIGKILL)
        expect(page.get_by_role("alert")).to_contain_text("engine's process has ended")
        ended(page, "broken off")
        eventually(lambda: served.health() == 200)
        setting(page, "max_tokens", 30)
        setting(page, "ignore_eos", False)
        send(page, "What is 2 + 3?")
        expect(answers(page).last).to_have_text("2 + 3 = 5")
        tab(page, "Request")
        expect(page.locator("#code pre").first).to_contain_text(f"curl {served.url}/v1/chat/completions")


def test_the_server_goes_away_in_an_answer_and_comes_back(page: Page, engine_server, unhurried) -> None:
    """What had come of the answer stays; the page says that nobody answers, and notices when somebody does."""
    port = int(engine_server.url.rpartition(":")[2])
    with forwarder(port) as front, serve_page(f"http://127.0.0.1:{front.port}") as url:
        open_page(page, url)
        setting(page, "max_tokens", 1500)
        setting(page, "ignore_eos", True)
        send(page, "Tell me a story about a fox.")
        expect(answers(page)).not_to_be_empty()
        front.down()
        expect(page.get_by_role("alert")).to_contain_text("broke off")
        ended(page, "broken off")
        expect(answers(page)).not_to_be_empty()
        expect(page.locator("#server .down")).to_contain_text("No server answers")
        send(page, "Are you there?")
        expect(page.get_by_role("alert")).to_contain_text("No server answers")
        front.up()
        expect(page.locator("#server .up")).to_be_visible()
        setting(page, "max_tokens", 30)
        setting(page, "ignore_eos", False)
        send(page, "What is 2 + 3?")
        ended(page)


class Forwarder:
    """A port that leads to another one, and that can be taken down, connections and all; nobody else gets it then."""

    def __init__(self, to: int, port: int) -> None:
        self.to = to
        self.port = port
        self.sockets: list[socket.socket] = []
        self.up()

    def up(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.sockets = [self.listener]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.to))
            self.sockets += [near, far]
            if listener.fileno() < 0:  # taken down meanwhile
                self.down()
                return
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def forwarder(to: int) -> Iterator[Forwarder]:
    with own_port() as port:
        front = Forwarder(to, port)
        try:
            yield front
        finally:
            front.down()
