"""<quire-trace> before a server: /trace as it comes, keys, refusals, and an engine that goes and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from quire.reference.config import EngineConfig
from quire.server.config import ServerConfig
from quire.ui import trace
from tests.server.conftest import PATIENCE, LiveServer, serve
from tests.server.test_process import quire_serve
from tests.ui.conftest import drawn, own_port, pages_at

STORY = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def live() -> Iterator[LiveServer]:
    config = EngineConfig(num_blocks=200, max_num_seqs=8)
    with serve(config, server=ServerConfig(enable_trace=True, allowed_origins=("*",), api_key=("secret",))) as server:
        yield server


@contextmanager
def showing(open_context, address: str) -> Iterator:
    """A page with a <quire-trace> that has connected to nothing yet."""
    with pages_at() as base:
        page = open_context().new_page()
        page.goto(base + "/")
        page.set_content('<quire-trace></quire-trace><script type="module" src="/static/quire-trace.js"></script>')
        page.wait_for_function("!!customElements.get('quire-trace')")
        page.evaluate(
            "(address) => { window.t = document.querySelector('quire-trace'); window.at = address; }", address
        )
        yield page


def state(page) -> str:
    return page.locator("quire-trace .status").get_attribute("class").removeprefix("status ").strip()


def test_it_follows_a_server_and_one_can_look_back_meanwhile(live, open_context) -> None:
    with showing(open_context, live.url) as page:
        page.evaluate("t.connect(at + '/trace', { headers: { Authorization: 'Bearer secret' } })")
        page.wait_for_function("t.shadowRoot.querySelector('.status.live')")
        with live.http(headers={"Authorization": "Bearer secret"}) as http:
            assert http.post("/v1/completions", json=STORY).status_code == 200
            page.wait_for_function("t.length === 24")
            drawn(page)
            assert page.evaluate("t.position") == 23
            assert page.locator("quire-trace .says").inner_text().startswith("Step 23: 1 decode; ")
            page.locator("quire-trace").get_by_role("button", name="One step back").click()
            assert page.evaluate("t.position") == 22
            assert http.post("/v1/completions", json=STORY).status_code == 200
            page.wait_for_function("t.length === 48")
            assert page.evaluate("t.position") == 22, "who looks back is left in peace"
            page.keyboard.press("End")
            assert http.post("/v1/completions", json=STORY).status_code == 200
            page.wait_for_function("t.length === 72 && t.position === 71")
        page.evaluate("t.disconnect()")
        assert state(page) == "closed" and page.evaluate("t.length") == 72
        again = page.evaluate("t.load(t.exportTrace()) && t.length")
        assert again == 72


def test_without_the_key_it_says_so_and_does_not_ask_again(live, open_context) -> None:
    with showing(open_context, live.url) as page:
        page.evaluate("t.connect(at + '/trace', { headers: { Authorization: 'Bearer wrong' } })")
        page.wait_for_function("t.shadowRoot.querySelector('.status.refused')")
        assert "Incorrect API key" in page.locator("quire-trace .status").inner_text()


def test_after_a_gap_it_goes_on_with_the_state_that_follows(open_context) -> None:
    """As the server tells one who reads too slowly. What was seen before the gap stays."""
    lines = [json.loads(line) for line in trace("pressure").splitlines()]
    whole = [i for i, line in enumerate(lines) if line["type"] == "step"]
    cut, resume = whole[30], whole[50]
    with showing(open_context, "") as page:
        page.evaluate("(lines) => lines.forEach((line) => t.push(line))", lines[:cut])
        state = page.evaluate(
            """async ([lines, count]) => {
                const { Trace } = await import("/static/trace/model.js");
                const all = new Trace();
                all.load(lines.map((line) => JSON.stringify(line)).join("\\n") + "\\n");
                all.dropped = 1; // so that a state stands for the beginning
                all.keyframes[0] = all.stateAt(count);
                return all.lines()[1];
            }""",
            [lines, 49],
        )
        page.evaluate(
            "(lines) => lines.forEach((line) => t.push(line))", [{"type": "dropped", "steps": 20}, lines[0], state]
        )
        assert "20 steps were left out" in page.locator("quire-trace .status").inner_text()
        page.evaluate("(lines) => lines.forEach((line) => t.push(line))", lines[resume:])
        assert page.evaluate("t.length") == len(whole) - 20
        drawn(page)
        assert page.locator("quire-trace .says").inner_text().startswith(f"Step {len(whole) - 1}: ")
        assert page.locator("quire-trace .blocks p").inner_text().startswith("0 of 40 in use")


def test_it_waits_for_a_server_that_dies_and_goes_on_when_it_is_back(open_context, tmp_path) -> None:
    """The whole server: address and port stay, all else is new."""
    with showing(open_context, "") as page, own_port() as port:
        arguments = ("--enable-trace", "--allowed-origins", "*", "--port", str(port))
        with quire_serve(tmp_path, *arguments) as served:
            page.evaluate("(address) => t.connect(address + '/trace')", served.url)
            page.wait_for_function("t.shadowRoot.querySelector('.status.live')")
            httpx.post(f"{served.url}/v1/completions", json=STORY, timeout=PATIENCE).raise_for_status()
            page.wait_for_function("t.length === 24")
            served.process.terminate()
            served.process.wait(PATIENCE)
            page.wait_for_function("t.shadowRoot.querySelector('.status.waiting')")
            assert page.evaluate("t.length") == 24, "what was seen stays"
        with quire_serve(tmp_path, *arguments) as served:
            page.wait_for_function("t.shadowRoot.querySelector('.status.live')")
            httpx.post(f"{served.url}/v1/completions", json=STORY, timeout=PATIENCE).raise_for_status()
            page.wait_for_function("t.length === 24 && t.position === 23")
