"""The page as a whole: for eyes (every view, light and dark, wide and phone), for the keyboard, for twenty at once."""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from tests.server.conftest import eventually
from tests.ui.conftest import PHONE, WIDE
from tests.ui.steps import answers, ended, open_page, send, setting, tab

LOOKS = [("light", WIDE), ("dark", WIDE), ("light", PHONE)]
NAMELESS = re.compile(r"^\s*- (button|textbox|slider|spinbutton|checkbox|combobox|radio|tab|link)(?: \[.*\])?:?$", re.M)

# The lab's picture of a recorded scenario, from its first step to a certain one, each of them drawn.
STEP_BY_STEP = """async ([name, last]) => {
  await quirePage.recorded("lab", name);
  const picture = document.getElementById("lab");
  for (let i = 0; i <= last; i++) {
    picture.seek(i);
    await new Promise((drawn) => picture.addEventListener("quire-step", drawn, {once: true}));
  }
}"""


@pytest.mark.parametrize(("theme", "size"), LOOKS, ids=["light", "dark", "phone"])
def test_every_view(open_context, screenshot, playground: str, theme: str, size: dict[str, int]) -> None:
    """Nothing is wider than the page, every control has a name, and a picture of each view is there to be looked at."""
    look = "phone" if size is PHONE else theme
    page = open_context(viewport=size, color_scheme=theme).new_page()
    open_page(page, playground)

    def view(name: str, *, whole: bool = False) -> None:
        page.mouse.move(0, 0)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the page"
        assert not NAMELESS.findall(page.locator("body").aria_snapshot()), f"{name} has controls without a name"
        assert page.evaluate("document.body.classList.contains('dark')") is (theme == "dark")
        screenshot(page if whole or look == "phone" else page.locator("body"), f"{look}-{name}")

    setting(page, "temperature", 0.8)
    setting(page, "seed", 3)
    send(page, "Why is prefix caching useful?")
    ended(page)
    send(page, "Tell me a story about a fox.")
    ended(page)
    view("settings")
    tab(page, "Tokens")
    page.locator(".tokens .tok").nth(2).focus()
    view("chat")
    tab(page, "Request")
    view("request")
    tab(page, "Compare")
    page.locator("#compare").click()
    expect(page.locator(".verdict")).to_be_visible()
    view("compare", whole=True)
    tab(page, "Inspector")
    page.locator("#recorded input").click()
    page.get_by_role("option", name="Memory pressure and preemption").click()
    page.wait_for_function("document.getElementById('inspector').length > 60")
    page.evaluate("document.getElementById('inspector').seek(60)")
    view("inspector", whole=True)
    tab(page, "Lab")
    page.evaluate(STEP_BY_STEP, ["prefix", 12])
    expect(page.locator("#story .narration li.said")).to_have_count(4)
    view("lab", whole=True)


def test_with_the_keyboard_alone(page: Page, playground: str) -> None:
    """The message field has the focus; tabs are reached and switched with Tab, arrows and Enter."""
    open_page(page, playground)
    expect(page.locator("#prompt textarea")).to_be_focused()
    page.keyboard.type("What is 2 + 3?")
    page.keyboard.press("Enter")
    ended(page)
    expect(answers(page)).to_have_text("2 + 3 = 5")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Tokens":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#tokens .tok").first).to_be_visible()


def test_a_page_that_is_closed_computes_no_further(page: Page, playground: str, engine_server, unhurried) -> None:
    open_page(page, playground)
    setting(page, "max_tokens", 1900)
    setting(page, "ignore_eos", True)
    send(page, "Tell me a story about a fox.")
    expect(answers(page)).not_to_be_empty()
    assert engine_server.engine.stats().num_running
    page.close()
    eventually(lambda: not engine_server.engine.stats().num_running)


def test_twenty_sessions_at_once(playground: str) -> None:
    """Each has a conversation of its own, and all get their answers. They speak to the page's server as a page does."""
    with ThreadPoolExecutor(20) as pool:
        shown = list(pool.map(lambda i: session(playground, f"What is {i} + 100?"), range(20)))
    for i, log in enumerate(shown):
        assert f"{i} + 100 = {i + 100}<" in log and log.count("<article") == 2


def session(url: str, question: str) -> str:
    """Open the page, send a message greedily, wait for its end; the conversation as HTML."""
    with httpx.Client(base_url=url, timeout=120) as http:
        http.get("/").raise_for_status()
        config = http.get("/config").json()
        parts = {part["id"]: part for part in config["components"]}
        of = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        send = next(d for d in config["dependencies"] if [of["send"], "click"] in map(list, d["targets"]))
        values = {i: parts[i]["props"].get("value") for i in send["inputs"]}
        values |= {of["prompt"]: question}
        values |= {i: 0 for i in values if parts[i]["props"].get("label") == "temperature"}
        call = {"data": list(values.values()), "fn_index": send["id"], "session_hash": uuid.uuid4().hex}
        http.post("/gradio_api/queue/join", json=call).raise_for_status()
        asked = http.stream("GET", "/gradio_api/queue/data", params={"session_hash": call["session_hash"]})
        with asked as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if event.get("msg") == "process_completed":
                    assert event["success"], event
                    return event["output"]["data"][send["outputs"].index(of["conversation"])]
    raise AssertionError("the stream ended before the answer")
