"""The inspector: the engine's steps as a picture, live from a server's /trace, or recorded.

The picture is the element <quire-trace>, which also opens and saves trace files, without any of it leaving the browser;
what is here are the ways to feed it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from quire.ui.scenarios import SCENARIOS
from quire.ui.shared import Page

PICTURE = '<quire-trace id="{id}"></quire-trace>'


def build_inspector(page: Page) -> None:
    """Lay the tab out and connect it."""
    with gr.Row(elem_classes="toolbar"):
        live = gr.Button("Watch live", variant="primary", elem_id="watch")
        leave = gr.Button("Stop watching", elem_id="leave")
        choices = [("A recorded trace …", ""), *((one.title, one.name) for one in SCENARIOS)]
        recorded = gr.Dropdown(
            choices, value="", label="A recorded trace", show_label=False, container=False, elem_id="recorded"
        )
    gr.HTML('<p class="hint" id="inspector-say" role="status"></p>', padding=False)
    gr.HTML(PICTURE.format(id="inspector"), padding=False, elem_classes="picture")

    browser: dict[str, Any] = {"fn": None, "outputs": None, "api_visibility": "private"}
    live.click(**browser, inputs=[page.model, page.key], js="(m, k) => quirePage.watch('inspector', m, k)")
    leave.click(**browser, inputs=None, js="() => quirePage.leave('inspector')")
    recorded.input(**browser, inputs=recorded, js="(name) => quirePage.recorded('inspector', name)")
