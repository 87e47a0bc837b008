"""<quire-trace> in a real browser: what it reads off a trace, how one moves in it, what it lets out again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from quire.reference.trace import read_trace
from quire.reference.trace_chrome import to_chrome
from quire.ui import component, static, trace
from quire.ui.scenarios import SCENARIOS, scenario
from tests.conftest import ROOT
from tests.ui.conftest import PHONE, drawn, pages_at

NAMES = [one.name for one in SCENARIOS]


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    """The address of a server of the component's files, and of the traces."""
    with pages_at() as base:
        yield base


@pytest.fixture
def show(open_context, files: str) -> Callable:
    """Open a page with a <quire-trace> of these attributes; waits until its trace is there, if it has one."""

    def make(attributes: str = "", *, before: str = "", **options):
        page = open_context(**options).new_page()
        page.goto(files + "/")
        page.set_content(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>trace</title></head><body>{before}<quire-trace {attributes}></quire-trace>"
            '<script type="module" src="/static/quire-trace.js"></script></body></html>'
        )
        page.wait_for_function("!!customElements.get('quire-trace')")
        if "src=" in attributes:
            page.wait_for_function("document.querySelector('quire-trace').length > 0")
        return page

    return make


def call(page, code: str):
    """Evaluate JavaScript in which ``t`` is the element."""
    return page.evaluate(f"(async () => {{ const t = document.querySelector('quire-trace'); return {code}; }})()")


def recorded(name: str):
    """A scenario's recorded trace, as Python reads it."""
    return read_trace(static().with_name("traces") / f"{name}.jsonl")


def preemption() -> int:
    """The first step of the scenario about memory pressure that preempts."""
    return next(i for i, step in enumerate(recorded("pressure").steps) if step["preempted"])


def says(page) -> str:
    drawn(page)
    return page.locator("quire-trace .says").inner_text()


@pytest.mark.parametrize("name", NAMES)
def test_after_every_step_it_knows_what_the_engine_knew(show, name: str) -> None:
    """In any order of looking: tables as read_trace has them, blocks in use as the scheduler counted them."""
    page = show()
    steps = recorded(name).steps
    found = page.evaluate(
        """async ([text, count]) => {
            const { Trace } = await import("/static/trace/model.js");
            const trace = new Trace();
            trace.load(text);
            const found = [];
            for (let k = 0; k < count; k++) {
                const i = (k * 37 + 11) % count;
                const state = trace.stateAt(i);
                const { held } = state.occupancy(trace.numBlocks, trace.blockSize);
                found.push([i, Object.fromEntries(state.tables), held, state.cache.size]);
            }
            return found;
        }""",
        [trace(name), len(steps)],
    )
    assert {i for i, *_ in found} == set(range(len(steps))) or len(steps) % 37 == 0
    cached: dict[str, list[str]] = {}
    sizes = []
    for step in steps:
        cached = {block: entry for block, entry in (cached | step["cache"]).items() if entry is not None}
        sizes.append(len(cached))
    for i, tables, held, size in found:
        after = {str(row): blocks for row, blocks in steps[i]["tables"].items()} | steps[i]["after"]
        assert {row: blocks for row, blocks in after.items() if blocks is not None} == tables
        assert held == steps[i]["stats"]["blocks_used"] and size == sizes[i]


@pytest.mark.parametrize("name", NAMES)
def test_every_sentence_of_a_scenario_has_its_moment_in_its_recorded_trace(show, name: str) -> None:
    page = show()
    happened = page.evaluate(
        """async (text) => {
            const { Trace } = await import("/static/trace/model.js");
            const trace = new Trace();
            trace.load(text);
            return trace.steps.map((step) => step.info.happened);
        }""",
        trace(name),
    )
    at = 0
    for moment, text in scenario(name).narration:
        at = next((i for i in range(at, len(happened)) if moment in happened[i]), -1)
        assert at >= 0, text


def test_what_is_new_in_a_step_and_what_was_found_in_the_cache(show) -> None:
    """A sequence that starts is given its whole table at once: its cached beginning is found, the rest is new."""
    page = show()
    found = page.evaluate(
        """async (text) => {
            const { Trace } = await import("/static/trace/model.js");
            const trace = new Trace();
            trace.load(text);
            return trace.steps.map(({ info }) => [[...info.hitBlocks], info.shares.flatMap((share) => share.fresh)]);
        }""",
        trace("prefix"),
    )
    size, held = recorded("prefix").header["block_size"], set()
    for step, (hits, fresh) in zip(recorded("prefix").steps, found):
        for start in step["plan"]["starts"]:
            seq = next(seq for seq in step["plan"]["seqs"] if seq["row"] == start["row"])
            assert hits == seq["new_blocks"][: seq["start"] // size]
            assert set(fresh) >= set(seq["new_blocks"][seq["start"] // size :])
        assert not set(fresh) & held, "what somebody holds is not new"
        held = {block for row, table in step["tables"].items() if str(row) not in step["after"] for block in table}
    assert any(hits for hits, _ in found) and any(fresh for _, fresh in found)


def test_buttons_keys_and_the_slider_move_it(show) -> None:
    page = show('src="/traces/pressure.jsonl"')
    last = call(page, "t.length") - 1
    used = [step["stats"]["blocks_used"] for step in recorded("pressure").steps]
    assert used[call(page, "t.position")] == max(used), "at rest it shows where most is going on"
    page.locator("quire-trace").get_by_role("button", name="First step").click()
    assert call(page, "t.position") == 0 and says(page).startswith("Step 0: ")
    for key, position in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last), ("Home", 0)):
        page.keyboard.press(key)
        assert call(page, "t.position") == position, key
    page.keyboard.press("Shift+ArrowRight")
    assert call(page, "t.position") == 10
    page.locator("quire-trace").get_by_role("slider", name="Step").fill(str(preemption()))
    assert call(page, "t.position") == preemption() and "preempted" in says(page)
    call(page, "t.step(-9999)")
    page.locator("quire-trace").get_by_role("button", name="First step").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('quire-trace').shadowRoot.activeElement.title").startswith("One step")
    call(page, "t.seek(1e9)")
    assert call(page, "t.position") == last


def test_it_plays_pauses_and_tells_of_steps(show) -> None:
    """The page's clock is ours, so that it makes no difference how long anything takes."""
    page = show("autoplay")
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    page.evaluate(
        "window.told = []; document.addEventListener('quire-step', (event) => window.told.push(event.detail));"
    )
    call(page, "t.setAttribute('src', '/traces/beam.jsonl')")
    page.wait_for_function("document.querySelector('quire-trace').length > 0")
    page.clock.run_for(1000)
    play = page.locator("quire-trace").get_by_role("button", name="Pause")
    play.focus()
    page.keyboard.press("Space")
    position = call(page, "t.position")
    assert 4 < position <= 10, "ten steps a second"
    page.clock.run_for(1000)
    assert call(page, "t.position") == position < call(page, "t.length") - 1
    told = page.evaluate("window.told")
    assert told and told[-1]["index"] == told[-1]["step"] == position and "decode" in told[-1]["happened"]
    assert [one["index"] for one in told] == sorted({one["index"] for one in told})
    assert set(told[0]) == {"index", "time", "step", "happened"}
    page.locator("quire-trace").get_by_label("Speed").select_option("60")
    call(page, "t.play()")
    page.clock.run_for(5000)
    assert call(page, "t.position") == call(page, "t.length") - 1


def test_a_sequence_is_chosen_by_keyboard_and_described_in_words(show) -> None:
    page = show('src="/traces/prefix.jsonl"')
    step = recorded("prefix").steps[20]
    call(page, "t.seek(20)")
    rows = page.locator("quire-trace").get_by_role("listbox")
    rows.focus()
    page.keyboard.press("ArrowDown")
    drawn(page)
    first = min(step["plan"]["seqs"], key=lambda seq: seq["seq_id"])
    blocks = step["tables"][first["row"]]
    tokens = first["start"] + first["n"] + 1
    text = f"req-{first['seq_id']}: running, {tokens} tokens in {len(blocks)} blocks: {', '.join(map(str, blocks))}"
    assert rows.get_by_role("option").inner_text() == text
    assert page.locator("quire-trace .arrows g path").count() == len(blocks)
    assert call(page, "t.position") == 20, "up and down belong to the list"
    page.keyboard.press("Escape")
    drawn(page)
    assert page.locator("quire-trace .arrows g path").count() == 0


def test_each_view_has_a_name_and_a_description(show) -> None:
    page = show('src="/traces/speculation.jsonl"')
    call(page, "t.seek(30)")
    drawn(page)
    labels = page.locator("quire-trace").evaluate(
        "t => [...t.shadowRoot.querySelectorAll('[role=img]')].map((node) => node.getAttribute('aria-label'))"
    )
    assert [label.split(":")[0].split(" over")[0] for label in labels] == [
        "Map of the physical KV blocks", "Schedule of 2 sequences", "Use of the KV cache", "Tree of the prefix cache",
        "Accepted drafts by position",
    ]  # fmt: skip
    assert "draft 1: " in labels[-1]
    assert page.locator("quire-trace [aria-live=polite]").inner_text().startswith("Step 30")


def test_of_a_large_pool_only_what_was_ever_used_is_drawn(show) -> None:
    page = show()
    text = trace("prefix").replace('"num_blocks":65', '"num_blocks":40001', 1)
    assert call(page, f"t.load({json.dumps(text)})") is True
    drawn(page)
    assert page.locator("quire-trace .blocks p").inner_text().endswith("39,745 more, never used")


@pytest.mark.parametrize(
    ("asked", "system", "dark"),
    [("auto", "dark", True), ("auto", "light", False), ("dark", "light", True), ("light", "dark", False)],
)
def test_light_and_dark_as_the_system_or_the_page_says(show, asked: str, system: str, dark: bool) -> None:
    page = show(f'src="/traces/beam.jsonl" theme="{asked}"', color_scheme=system)
    background = page.locator("quire-trace .frame").evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_a_copy_flashes_unless_motion_is_reduced(show, motion: str) -> None:
    """While it flashes, each frame asks for the next one. Time stands still here, so it would go on for ever."""
    page = show('src="/traces/parallel.jsonl"', reduced_motion=motion)
    at = next(i for i, step in enumerate(recorded("parallel").steps) if step["plan"]["copies"])
    frames = page.evaluate(
        """async (at) => {
            const next = window.requestAnimationFrame.bind(window);
            const some = async () => { for (let i = 0; i < 5; i++) await new Promise((done) => next(done)); };
            let asked = 0;
            window.performance.now = () => 1000;
            window.requestAnimationFrame = (callback) => { asked++; return next(() => callback(1000)); };
            document.querySelector("quire-trace").seek(at);
            await some(); // what moves with the new step has found its place
            asked = 0;
            await some();
            return asked;
        }""",
        at,
    )
    assert frames == 0 if motion == "reduce" else frames > 3


def test_views_chooses_the_parts(show) -> None:
    page = show('src="/traces/prefix.jsonl" views="usage prefix nonsense"')
    titles = page.locator("quire-trace h3")
    assert titles.all_inner_texts() == ["KV cache over time", "Prefix cache"]
    page.locator("quire-trace").evaluate("t => t.setAttribute('views', 'blocks')")
    assert titles.all_inner_texts() == ["Physical blocks"]


@pytest.mark.parametrize("name", NAMES)
def test_exports_are_what_the_engine_would_write(show, tmp_path, name: str) -> None:
    """Perfetto's file as quire.reference.trace_chrome makes it, and the trace itself."""
    page = show(f'src="/traces/{name}.jsonl"')
    assert [json.loads(line) for line in call(page, "t.exportTrace()").splitlines()] == [
        json.loads(line) for line in trace(name).splitlines()
    ]
    to_chrome(static().with_name("traces") / f"{name}.jsonl", tmp_path / "chrome.json")
    expected = json.loads((tmp_path / "chrome.json").read_text())
    exported = json.loads(call(page, "t.exportPerfetto()"))
    assert len(exported["traceEvents"]) == len(expected["traceEvents"])
    for ours, theirs in zip(exported["traceEvents"], expected["traceEvents"]):
        times = [(event.pop("ts", 0), event.pop("dur", 0)) for event in (ours, theirs)]
        assert ours == theirs and times[0] == pytest.approx(times[1], abs=0.11)  # halves are rounded differently


def test_a_file_can_be_opened_and_saved(show, tmp_path) -> None:
    page = show()
    assert page.locator("quire-trace .empty").is_visible()
    file = tmp_path / "steps.jsonl"
    file.write_text(trace("parallel"))
    page.locator("quire-trace input[type=file]").set_input_files(file)
    page.wait_for_function(f"document.querySelector('quire-trace').length === {len(recorded('parallel').steps)}")
    for button, name in (("Save", "steps.jsonl"), ("Perfetto", "steps.trace.json")):
        with page.expect_download() as download:
            page.locator("quire-trace").get_by_role("button", name=button).click()
        assert download.value.suggested_filename == name and download.value.path().stat().st_size > 10_000


def test_a_file_can_be_dropped_on_it(show) -> None:
    page = show()
    page.evaluate(
        """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([text], "steps.jsonl"));
            const frame = document.querySelector("quire-trace").shadowRoot.querySelector(".frame");
            for (const type of ["dragover", "drop"]) {
                frame.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }""",
        trace("beam"),
    )
    page.wait_for_function(f"document.querySelector('quire-trace').length === {len(recorded('beam').steps)}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "no header"),
        ("no trace\nat all\n", "line 1 is not JSON"),
        ('{"type":"header","v":1}\n', "schema version 1; this viewer reads 2"),
    ],
)
def test_what_is_no_trace_is_said_and_changes_nothing(show, text: str, problem: str) -> None:
    page = show('src="/traces/beam.jsonl"')
    assert call(page, f"t.load({json.dumps(text)})") is False
    assert problem in page.locator("quire-trace .status").inner_text()
    assert call(page, "t.length") == len(recorded("beam").steps)


def test_a_trace_that_was_cut_off_is_shown_as_far_as_it_goes(show) -> None:
    page = show()
    assert call(page, f"t.load({json.dumps(trace('beam')[:-20])})") is True
    assert call(page, "t.length") == len(recorded("beam").steps) - 1


def test_what_a_trace_says_is_text_and_never_markup(show) -> None:
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    page = show()
    text = trace("pressure").replace('"req-', '"' + json.dumps(evil)[1:-1])
    assert call(page, f"t.load({json.dumps(text)})") is True
    call(page, f"t.seek({preemption()})")
    assert evil in says(page)
    drawn(page)
    assert page.evaluate("window.hit") is None and page.locator("quire-trace img").count() == 0


def test_the_component_in_one_text_draws_in_an_iframe_of_its_own(show) -> None:
    """As notebooks use it: no server, no modules."""
    page = show()
    document = f"<quire-trace></quire-trace><script>{component()}</script>"
    assert component().count("</") == 0
    page.evaluate(
        """async ([html, text]) => {
            const frame = document.createElement("iframe");
            frame.srcdoc = html;
            const loaded = new Promise((resolve) => { frame.onload = resolve; });
            document.body.append(frame);
            await loaded;
            frame.contentDocument.querySelector("quire-trace").load(text);
        }""",
        [document, trace("prefix")],
    )
    inside = page.frame_locator("iframe").locator("quire-trace")
    assert inside.locator("h3").first.inner_text() == "Physical blocks"
    assert f" / {len(recorded('prefix').steps)} · " in inside.locator(".where").inner_text()


def test_the_page_of_one_file_that_the_documentation_makes(open_context, tmp_path, monkeypatch) -> None:
    text = (ROOT / "docs" / "trace.md").read_text("utf-8")
    [source] = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.S) if "component" in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "docs/trace.md", "exec"), {})
    page = open_context().new_page()
    page.goto((tmp_path / "trace.html").as_uri())
    drawn(page)
    assert page.locator("quire-trace .says").inner_text().startswith("Step ")
    assert page.locator("quire-trace section:visible").count() == 5  # no drafts, no picture of them


def test_a_stream_is_followed_until_one_looks_back(show) -> None:
    page = show()
    lines = trace("pressure").splitlines()
    call(page, f"{json.dumps(lines[:40])}.forEach((line) => t.push(JSON.parse(line)))")
    steps = call(page, "t.length")
    assert call(page, "t.position") == steps - 1
    call(page, "t.seek(3)")
    call(page, f"{json.dumps(lines[40:60])}.forEach((line) => t.push(JSON.parse(line)))")
    assert call(page, "t.position") == 3 and call(page, "t.length") > steps


def test_a_long_stream_forgets_its_beginning_and_can_still_be_saved(show) -> None:
    page = show()
    kept, length, saved, same = page.evaluate(
        """async (text) => {
            const { Trace } = await import("/static/trace/model.js");
            const [all, some] = [new Trace(), new Trace(1e9, 300)];
            for (const line of text.trim().split("\\n")) { all.add(JSON.parse(line)); some.add(JSON.parse(line)); }
            const again = new Trace();
            again.load(some.lines().map((line) => JSON.stringify(line)).join("\\n"));
            const same = some.steps.every((_, i) => {
                const states = [all.stateAt(some.dropped + i), some.stateAt(i), again.stateAt(i)];
                const tables = states.map((state) => JSON.stringify([...state.tables].sort()));
                return tables[0] === tables[1] && tables[1] === tables[2];
            });
            return [some.length, all.length, again.length, same];
        }""",
        trace("pressure"),
    )
    assert length == len(recorded("pressure").steps) and kept == saved == length - 64 and same


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_of_every_scenario(show, screenshot, theme: str) -> None:
    """For people to look at. Asserted is only that something is drawn in every view."""
    positions = {"prefix": 20, "parallel": 1, "beam": 21, "pressure": 60, "chunked": 12, "speculation": 20}
    for name, position in positions.items():
        page = show(f'src="/traces/{name}.jsonl" theme="{theme}"', device_scale_factor=2)
        call(page, f"t.seek({position})")
        if name in ("prefix", "pressure"):
            page.locator("quire-trace").get_by_role("listbox").focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
        drawn(page)
        screenshot(page.locator("quire-trace"), f"trace-{name}-{theme}")
        blank = page.locator("quire-trace").evaluate(
            """t => [...t.shadowRoot.querySelectorAll("section:not([hidden]) canvas")].filter((canvas) => {
                const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(pixels.buffer)).size < 3;
            }).length"""
        )
        assert blank == 0


def test_pictures_on_a_phone(show, screenshot) -> None:
    page = show('src="/traces/pressure.jsonl"', viewport=PHONE, device_scale_factor=2, color_scheme="dark")
    call(page, "t.seek(50)")
    drawn(page)
    screenshot(page, "trace-phone-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
