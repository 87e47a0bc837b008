"""Compare: the same prompt twice with one thing switched, what it changes in time, and whether it changes the text.

The two sides take turns, so that whatever else the machine does hits both, and medians are shown. Each request has a
``cache_salt`` of its own, so that neither side finds the other's blocks in the prefix cache, unless that is the thing
that is switched. What only a server's start can switch (chunk size, backend, …) is compared between two servers.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import takewhile
from statistics import median
from typing import Any

import gradio as gr

from quire.ui.client import Answer, Body, Client, ServerError, until
from quire.ui.parameters import FIRST, MORE, Control, controls_of, fields, parsed
from quire.ui.scenarios import ASSISTANT
from quire.ui.shared import Page, problem, seconds, split_target, under_way

EVERY = 0.12  # seconds between two updates of the page
LISTS = "Copy: piano, lucky, zebra, garden, hill, lamp, whale, plum, dog, ring, guard, light"
SAMPLING = {control.name: control for control in (*FIRST, *MORE) if control.name != "n"}


@dataclass
class Side:
    """One of the two: what is sent where, whether it is sent once before it is measured, and what came of it."""

    name: str
    url: str
    body: Body
    warm: bool = False
    answers: list[Answer] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.answers[-1].choices[0].text if self.answers and self.answers[-1].choices else ""

    def median(self, of: Callable[[Answer], float | None]) -> float | None:
        """Over the answers that have ended."""
        values = [value for answer in self.answers if (value := of(answer)) is not None]
        return median(values) if values else None


def build_compare(page: Page) -> None:
    """Lay the tab out and connect it."""
    servers = page.client.urls
    switches = ["prefix cache: cold or warm", "speculation: on or off", "a sampling parameter"]
    if len(servers) > 1:
        switches.append("server")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            system = gr.Textbox(ASSISTANT, label="System prompt", lines=3, max_lines=6)
            prompt = gr.Textbox(LISTS, label="Message", lines=2, elem_id="compare-prompt")
        with gr.Column(scale=4, min_width=320):
            switch = gr.Dropdown(switches, value=switches[0], label="What is switched", elem_id="switch")
            with gr.Row(visible=False, elem_classes="grid") as parameter_row:
                parameter = gr.Dropdown(list(SAMPLING), value="temperature", label="Parameter", min_width=120)
                left = gr.Textbox("0", label="Left", min_width=80, elem_id="left")
                right = gr.Textbox("0.9", label="Right", min_width=80, elem_id="right")
            with gr.Row(visible=False, elem_classes="grid") as server_row:
                one = gr.Dropdown(servers, value=servers[0], label="Left", min_width=150)
                two = gr.Dropdown(servers, value=servers[-1], label="Right", min_width=150)
            with gr.Accordion("Sampling of both", open=False), gr.Row(elem_classes="grid"):
                controls = controls_of(page.meanings, FIRST)
            runs = gr.Slider(1, 9, value=3, step=1, label="Runs of each side", info="medians are shown")
            with gr.Row(elem_classes="composer"):
                run = gr.Button("Compare", variant="primary", elem_id="compare")
                stop = gr.Button("Stop", variant="stop", elem_id="compare-stop")
    note = gr.HTML(elem_id="compare-note", padding=False)
    table = gr.HTML(elem_id="compare-table", padding=False)
    running = gr.State(None)  # what stops the comparison under way: an asyncio.Event, or None
    if len(servers) == 1:
        gr.HTML(
            '<p class="hint">Chunk size, backend and the like are set when a server starts. To compare them, start a '
            "second server and name both: <code>quire serve --port 8001 --no-enable-chunked-prefill</code>, then "
            f"<code>quire ui --url {escape(servers[0])} --url http://127.0.0.1:8001</code>.</p>",
            padding=False,
        )

    def on_switch(name: str) -> list[Any]:
        return [gr.update(visible=name == "a sampling parameter"), gr.update(visible=name == "server")]

    def sides(values: dict[Any, Any]) -> list[Side]:
        """The two requests. Raises ValueError for what was typed wrongly."""
        url, model = split_target(values[page.model], page.client)
        common: Body = {"model": model} if model else {}
        if values[system].strip():
            common["messages"] = [{"role": "system", "content": values[system]}]
        common.setdefault("messages", []).append({"role": "user", "content": values[prompt]})
        common |= {"temperature": 0, **fields(FIRST, [values[c] for c in controls])}
        match values[switch]:
            case "speculation: on or off":
                return [Side("on", url, common), Side("off", url, common | {"speculative": False})]
            case "prefix cache: cold or warm":
                return [Side("cold", url, common), Side("warm", url, common, warm=True)]
            case "server":
                chosen = [u if u in servers else servers[0] for u in (values[one], values[two])]
                common.pop("model", None)  # each has its own
                return [Side(u, u, common) for u in chosen]
            case _:
                control = SAMPLING.get(values[parameter], FIRST[0])
                both = [common | setting(control, values[field]) for field in (left, right)]
                return [Side(f"{control.name} = {shown(body, control)}", url, body) for body in both]

    async def on_run(values: dict[Any, Any]) -> AsyncIterator[dict[Any, Any]]:
        if under_way(values[running]):
            yield {note: gr.skip()}
            return
        stopper = asyncio.Event()
        try:
            pair = sides(values)
            count = int(values[runs])
            for number in range(count):
                for side in pair if number % 2 == 0 else reversed(pair):
                    say = f'<p class="hint" role="status">Run {number + 1} of {count}, {escape(side.name)} …</p>'
                    yield {note: say, table: table_html(pair), running: stopper}
                    painted = time.perf_counter()
                    async for answer in until(stopper, ask(page.client, side, values[page.key])):
                        if not any(answer is known for known in side.answers):
                            side.answers.append(answer)
                        if time.perf_counter() - painted > EVERY:
                            painted = time.perf_counter()
                            yield {table: table_html(pair)}
                    if stopper.is_set():
                        yield {note: '<p class="hint" role="status">Stopped.</p>', running: None}
                        return
        except (ServerError, ValueError) as error:
            yield {note: problem(str(error)), running: None}
            return
        yield {note: verdict(*pair), table: table_html(pair), running: None}

    async def on_stop(stopper: asyncio.Event | None) -> None:
        if stopper is not None:
            stopper.set()

    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    switch.change(on_switch, switch, [parameter_row, server_row], **quiet)
    asked = {
        page.key, page.model, system, prompt, switch, parameter, left, right, one, two, runs, running, *controls,
    }  # fmt: skip
    run.click(on_run, asked, [note, table, running], **quiet)
    stop.click(on_stop, running, None, **quiet)


async def ask(client: Client, side: Side, key: str) -> AsyncGenerator[Answer, None]:
    """Send a side's request. A warm one is sent twice under one salt; the second is what is yielded."""
    body = side.body | {"cache_salt": uuid.uuid4().hex}
    if side.warm:
        async for _ in client.chat(side.url, body | {"max_tokens": 1}, key):
            pass
    async for answer in client.chat(side.url, body, key):
        yield answer


def setting(control: Control, text: str) -> Body:
    """A parameter's value as a field of the request; empty = not sent. Raises ValueError."""
    if not text.strip():
        return {}
    if control.kind == "check":
        return {control.name: text.strip().lower() in ("true", "yes", "1", "on")}
    if control.kind == "slider":
        control = Control(control.name, "integer" if control.name == "max_tokens" else "number")
    return {control.name: parsed(control, text)}


def shown(body: Body, control: Control) -> str:
    return str(body.get(control.name, "not set"))


ROWS: tuple[tuple[str, Callable[[Answer], float | None], Callable[[float | None], str], bool], ...] = (
    # title, value, how it is written, whether less is better
    ("first token", lambda a: a.ttft, seconds, True),
    ("speed", lambda a: a.rate, lambda v: "–" if v is None else f"{v:,.0f} tokens/s", False),
    ("prompt tokens from the cache", lambda a: a.cached_tokens, lambda v: "–" if v is None else f"{v:,.0f}", False),
    ("prompt tokens", lambda a: a.prompt_tokens, lambda v: "–" if v is None else f"{v:,.0f}", True),
    ("answer tokens", lambda a: a.completion_tokens, lambda v: "–" if v is None else f"{v:,.0f}", True),
    ("drafts accepted", lambda a: a.accepted, lambda v: "–" if v is None else f"{v:,.0f}", False),
)


def table_html(pair: Sequence[Side]) -> str:
    """Both sides: texts, then what was measured, with the right one as a multiple of the left one."""
    same = len(list(takewhile(lambda two: two[0] == two[1], zip(pair[0].text, pair[1].text))))
    head = "".join(f"<th scope='col'>{escape(side.name)}</th>" for side in pair)
    texts = "".join(f"<td class='text'>{marked(side.text, same)}</td>" for side in pair)
    rows = ""
    for title, of, written, less in ROWS:
        a, b = (side.median(of) for side in pair)
        timed = title in ("first token", "speed")
        ratio = "" if not timed or not a or not b else factor(a / b if less else b / a)
        cells = f"<td>{written(a)}</td><td>{written(b)}</td><td class='ratio'>{ratio}</td>"
        rows += f"<tr><th scope='row'>{title}</th>{cells}</tr>"
    return (
        f"<table class='compare'><thead><tr><td></td>{head}<td></td></tr></thead><tbody>"
        f"<tr><th scope='row'>text</th>{texts}<td></td></tr>{rows}</tbody></table>"
    )


def factor(times: float) -> str:
    """How much faster the right side is."""
    return f"{times:.2f}× as fast" if times >= 0.995 else f"{1 / times:.2f}× slower"


def marked(text: str, same: int) -> str:
    """A text, escaped, with what differs from the other one marked."""
    return escape(text[:same]) + (f"<mark>{escape(text[same:])}</mark>" if text[same:] else "")


def verdict(left: Side, right: Side) -> str:
    """Whether all texts are the same."""
    texts = {choice.text for side in (left, right) for answer in side.answers for choice in answer.choices}
    if len(texts) == 1:
        return '<p class="verdict equal" role="status">✓ The texts are equal, in every run.</p>'
    if left.text == right.text:
        said = "The last texts are equal, those of earlier runs are not: set a seed."
        return f'<p class="verdict" role="status">≠ {said}</p>'
    return '<p class="verdict" role="status">≠ The texts differ; what is different is marked.</p>'
