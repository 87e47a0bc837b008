"""Compare, inspector and lab, in a real browser in front of a real server on the embedded model."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from quire.ui.scenarios import SCENARIOS, scenario
from tests.ui.steps import open_page, tab


def compare(page: Page, switch: str) -> dict[str, list[str]]:
    """Run the comparison; the table: row -> what stands left, right, and between."""
    tab(page, "Compare")
    page.get_by_label("What is switched").click()
    page.get_by_role("option", name=switch).click()
    page.get_by_label("number input for Runs of each side").fill("1")
    page.locator("#compare").click()
    expect(page.locator(".verdict")).to_be_visible()
    rows = page.locator(".compare tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def test_a_cached_prefix_changes_the_time_and_not_the_text(page: Page, playground: str) -> None:
    found = compare(open_page(page, playground), "prefix cache: cold or warm")
    expect(page.locator(".verdict")).to_contain_text("The texts are equal")
    cold, warm, _ = found["prompt tokens from the cache"]
    assert cold == "0" and int(warm) >= 128
    assert found["text"][0] == "piano, lucky, zebra, garden, hill, lamp, whale, plum, dog, ring, guard, light"
    assert "as fast" in found["first token"][2] or "slower" in found["first token"][2]


def test_speculation_changes_the_time_and_not_the_text(page: Page, playground: str) -> None:
    found = compare(open_page(page, playground), "speculation: on or off")
    expect(page.locator(".verdict")).to_contain_text("The texts are equal")
    on, off, _ = found["drafts accepted"]
    assert int(on) > 0 and off == "0"


def test_a_sampling_parameter_changes_the_text(page: Page, playground: str) -> None:
    """What differs is marked."""
    open_page(page, playground)
    tab(page, "Compare")
    page.get_by_label("Message").last.fill("Tell me a story about a fox.")
    found = compare(page, "a sampling parameter")
    expect(page.locator(".verdict")).to_contain_text("The texts differ")
    expect(page.locator(".compare thead")).to_contain_text("temperature = 0.9")
    assert page.locator(".compare mark").count() == 2 and found["text"][0] != found["text"][1]


def test_the_inspector_follows_the_server(page: Page, playground: str, engine_server) -> None:
    """What is asked elsewhere is seen here; then the picture stands still, goes back in time, and can be saved."""
    open_page(page, playground)
    tab(page, "Inspector")
    page.get_by_role("button", name="Watch live").click()
    picture = page.locator("quire-trace#inspector")
    expect(picture.locator(".status")).to_have_text("Live.")
    with engine_server.http() as http:
        body = {"messages": [{"role": "user", "content": "What is 2 + 3?"}], "temperature": 0}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    page.wait_for_function("document.getElementById('inspector').length >= 3")
    page.get_by_role("button", name="Stop watching").click()
    expect(picture.locator(".status")).to_have_text("Not connected.")
    last = page.evaluate("document.getElementById('inspector').position")
    picture.get_by_label("Step", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.getElementById('inspector').position") == last - 1
    with page.expect_download() as found:
        picture.get_by_role("button", name="Perfetto").click()
    assert json.loads(found.value.path().read_text("utf-8"))["traceEvents"]


def test_the_inspector_shows_recorded_traces(page: Page, playground: str) -> None:
    open_page(page, playground)
    tab(page, "Inspector")
    page.locator("#recorded input").click()
    page.get_by_role("option", name="Beam search").click()
    page.wait_for_function("document.getElementById('inspector').length > 20")


def test_a_server_without_a_trace_says_so(page: Page, server) -> None:
    from tests.ui.conftest import serve_page

    with serve_page(server.url) as url:
        open_page(page, url)
        tab(page, "Inspector")
        page.get_by_role("button", name="Watch live").click()
        expect(page.locator("#inspector-say")).to_contain_text("Start it with --enable-trace")
        tab(page, "Lab")
        page.get_by_role("button", name="Play live").click()
        expect(page.locator("#lab-say")).to_contain_text("Start it with --enable-trace")


@pytest.mark.parametrize("name", [one.name for one in SCENARIOS])
def test_a_scenario_can_be_watched(page: Page, playground: str, name: str) -> None:
    """Live: every sentence of its story is said, each when its moment has come, and all answers arrive."""
    one = scenario(name)
    open_page(page, playground)
    tab(page, "Lab")
    page.get_by_label(one.title, exact=True).check()
    expect(page.locator("#story .idea")).to_have_text(one.idea)
    page.get_by_role("button", name="Play live").click()
    expect(page.locator("#lab-note")).to_contain_text(f"All {len(one.calls)} answers are there")
    said = page.locator("#story .narration li.said")
    expect(said).to_have_count(len(one.narration))
    page.get_by_role("button", name="The answers").click()
    expect(page.locator("#lab-answers dd")).to_have_count(len(one.calls))


def test_a_recording_can_be_watched(page: Page, playground: str) -> None:
    """The same story told by a recorded trace, at ten steps a second or as fast as one likes."""
    open_page(page, playground)
    tab(page, "Lab")
    page.get_by_role("button", name="Play the recording").click()
    page.locator("quire-trace#lab").get_by_label("Speed").select_option("60")
    story = scenario("prefix").narration
    expect(page.locator("#story .narration li.said")).to_have_count(len(story))
