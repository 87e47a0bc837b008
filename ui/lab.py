"""The lab: scenarios that put load on the server and say what to look at while it happens.

A scenario is played live, by sending its requests to the server whose trace is shown, or as it was recorded. What is
said comes with what is seen: the element <quire-trace> names the moments in the trace, page.js lights up the sentence.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr

from quire.ui.client import ServerError
from quire.ui.inspector import PICTURE
from quire.ui.scenarios import SCENARIOS, Scenario, scenario
from quire.ui.shared import Page, problem, split_target

OVERFULL = 1.3  # times the KV cache that memory pressure asks for
LONGEST = 1500  # tokens of a story, so that it fits a context of 2,048


def build_lab(page: Page) -> None:
    """Lay the tab out and connect it."""
    first = SCENARIOS[0]
    choice = gr.Radio(
        [(one.title, one.name) for one in SCENARIOS], value=first.name, label="Scenario", elem_id="scenario",
        show_label=False, container=False,
    )  # fmt: skip
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=290):
            with gr.Row(elem_classes="composer"):
                live = gr.Button("Play live", variant="primary", elem_id="play-live")
                recorded = gr.Button("Play the recording", elem_id="play-recorded")
            story = gr.HTML(story_html(first), elem_id="story", padding=False)
            note = gr.HTML(elem_id="lab-note", padding=False)
        with gr.Column(scale=8, min_width=320):
            gr.HTML('<p class="hint" id="lab-say" role="status"></p>', padding=False)
            gr.HTML(PICTURE.format(id="lab"), padding=False, elem_classes="picture")
    with gr.Accordion("The answers", open=False):
        answers = gr.HTML(elem_id="lab-answers", padding=False)

    async def on_live(name: str, model: str | None, key: str, watching: bool) -> AsyncIterator[dict[Any, Any]]:
        """Send the scenario's requests. ``watching``: the browser follows the trace already."""
        url, _ = split_target(model, page.client)
        if not watching:  # the page says why
            yield {note: ""}
            return
        try:
            played, remark = fitted(scenario(name), *await page.client.pool(url, key))
            yield {note: f'<p class="hint" role="status">{escape(remark or "Requests are on their way …")}</p>'}
            texts = await page.client.play(url, played, key)
        except ServerError as error:
            yield {note: problem(str(error))}
            return
        done = f"All {len(texts)} answers are there. {remark}"
        yield {note: f'<p class="hint" role="status">{escape(done)}</p>', answers: answers_html(texts)}

    browser: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    seen = gr.Checkbox(False, visible="hidden")
    choice.change(lambda name: [story_html(scenario(name)), ""], choice, [story, note], **browser).then(
        None, None, None, js="() => quirePage.reset('lab')"
    )
    live.click(
        None, [choice, page.model, page.key], seen, js="(name, m, k) => quirePage.play(name, m, k)",
        api_visibility="private",
    ).then(on_live, [choice, page.model, page.key, seen], [note, answers], **browser)  # fmt: skip
    recorded.click(None, choice, None, js="(name) => quirePage.recorded('lab', name, true)", api_visibility="private")


def story_html(one: Scenario) -> str:
    """What the scenario shows, the sentences to come, and how to start a server that shows it best."""
    said = "".join(f'<li data-moment="{moment}">{escape(sentence)}</li>' for moment, sentence in one.narration)
    contrast = ""
    if one.contrast is not None:
        name, value, then = one.contrast
        contrast = f"<p>Without it: <code>{escape(flag(name, value))}</code> {escape(then)}</p>"
    command = " ".join(["quire serve --enable-trace", *(flag(name, value) for name, value in one.engine.items())])
    return (
        f'<p class="idea">{escape(one.idea)}</p><ol class="narration" data-views="{" ".join(one.views)}">{said}</ol>'
        f'<details class="hint"><summary>The server that it was made for</summary>'
        f"<p><code>{escape(command)}</code></p>{contrast}</details>"
    )


def flag(name: str, value: Any) -> str:
    """An engine argument as ``quire serve`` takes it, for a shell."""
    word = name.replace("_", "-")
    if isinstance(value, bool) or value is None:
        return f"--{word}" if value else f"--no-{word}" if value is False else f"(no --{word})"
    return f"--{word} {shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))}"


def fitted(one: Scenario, blocks: int, block_size: int) -> tuple[Scenario, str]:
    """The scenario for a server with so many KV blocks, and what is to be said about that.

    Memory pressure has to fill the pool, whatever its size: the answers become as long as that takes.
    """
    if one.name != "pressure":
        return one, ""
    length = round(OVERFULL * blocks * block_size / len(one.calls))
    if length > LONGEST:
        said = f"This server has {blocks:,} KV blocks, too many for these stories to fill."
        return one, f"{said} Start one with --num-blocks 145, or play the recording."
    calls = tuple(replace(call, body={**call.body, "max_tokens": length}) for call in one.calls)
    return replace(one, calls=calls), f"Stories of {length} tokens, to fill this server's {blocks:,} KV blocks."


def answers_html(texts: list[tuple[str, str]]) -> str:
    """Questions and answers, escaped."""
    rows = "".join(f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in texts)
    return f'<dl class="answers">{rows}</dl>'
