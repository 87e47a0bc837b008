"""The page: its tabs, its looks, and how it is served, alone (``quire ui``) or below a path of the server's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from quire.ui import component
from quire.ui.chat import build_chat
from quire.ui.client import Client, ServerError
from quire.ui.compare import build_compare
from quire.ui.inspector import build_inspector
from quire.ui.lab import build_lab
from quire.ui.shared import Page, target
from quire.ui.traces import routes

TITLE = "quire playground"
# Fonts of the reader's own system: a page that works offline can ask nobody for others.
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def build_page(client: Client, meanings: Mapping[str, str], *, own: bool) -> gr.Blocks:
    """The page in front of ``client``'s servers; ``meanings`` explains the sampling parameters.

    ``own``: it is the server's own page, so a browser reaches the server where it found the page.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>quire <span>playground</span></h1>", padding=False, elem_id="title")
            status = gr.HTML(elem_id="server", padding=False)
            model = gr.Dropdown([], label="Model", show_label=False, container=False, elem_id="model", min_width=160)
            theme = gr.Button("Light / dark", size="sm", min_width=60, elem_id="theme")
        with gr.Row(visible=False, elem_id="key-row") as key_row:
            key = gr.Textbox(
                "", label="API key", type="password", elem_id="key", submit_btn="Use this key",
                info="kept in this browser tab until you close it, and sent to the server only",
            )  # fmt: skip
        address = gr.Textbox("", visible="hidden")
        page = Page(client, key, address, model, meanings)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat"):
                build_chat(page)
            with gr.Tab("Compare", id="compare"):
                build_compare(page)
            with gr.Tab("Inspector", id="inspector-tab"):
                build_inspector(page)
            with gr.Tab("Lab", id="lab-tab"):
                build_lab(page)

        async def look(api_key: str, chosen: str | None) -> dict[Any, Any]:
            """Ask every server what it serves; also the sign of life that is repeated every few seconds."""
            choices, lines, needs_key = [], [], False
            for url in client.urls:
                try:
                    for card in await client.models(url, api_key):
                        name = card["id"]
                        label = name if len(client.urls) == 1 else f"{name} at {url}"
                        choices.append((label, target(url, name)))
                        lines.append((True, f"{url} · context {card.get('max_model_len', 0):,} tokens"))
                except ServerError as error:
                    needs_key = needs_key or error.needs_key
                    lines.append((False, str(error)))
            values = [value for _, value in choices]
            if chosen not in values:
                chosen = values[0] if values else None
            return {
                status: status_html(lines),
                model: gr.update(choices=choices, value=chosen),
                key_row: gr.update(visible=True) if needs_key or api_key else gr.skip(),
            }

        shown: list[Any] = [status, model, key_row]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        # sessionStorage and not gr.BrowserState, which is localStorage: a key shall not outlive its tab.
        where = "location.origin" if own else "''"
        blocks.load(None, None, [key, address], js=f"() => [sessionStorage.getItem('quire-key') || '', {where}]").then(
            look, [key, model], shown, **quiet
        )
        gr.on([key.submit, key.blur], None, key, None, js="(key) => sessionStorage.setItem('quire-key', key)").then(
            look, [key, model], shown, **quiet
        )
        gr.Timer(5).tick(look, [key, model], shown, **quiet)
        theme.click(None, js="() => quirePage.theme()")
    return blocks


def status_html(lines: Sequence[tuple[bool, str]]) -> str:
    """A line for each server: whether it answers, and what it says of itself."""
    return "".join(
        f'<p class="{"up" if up else "down"}" role="status"><b aria-hidden="true">{"●" if up else "○"}</b> '
        f"{escape(text)}</p>"
        for up, text in dict.fromkeys(lines)
    )


def mount(app: FastAPI, path: str, urls: Sequence[str], meanings: Mapping[str, str]) -> FastAPI:
    """Put the page at ``path`` of ``app``, in front of the servers at ``urls``."""
    client = Client(urls)
    blocks = build_page(client, meanings, own=path != "/")
    app.include_router(routes(client), prefix=path.rstrip("/"))  # before the page, which takes every other address
    blocks.queue(default_concurrency_limit=None)
    return gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO),
        css=static("page.css"),
        head=f"<script>{component()}</script>\n<script>{static('page.js')}</script>",
        footer_links=[],
        run_history=False,  # it would keep what was typed, keys included, beyond the session
        ssr_mode=False,
        mcp_server=False,
        show_error=True,
    )


def build_app(urls: Sequence[str], meanings: Mapping[str, str]) -> FastAPI:
    """An application of its own with the page at /."""
    return mount(FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None), "/", urls, meanings)


def server(app: FastAPI) -> uvicorn.Server:
    """What serves it. Open pages never end by themselves, so what they hold open is cut when the server is to end."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def static(name: str) -> str:
    """The text of a file in ``static/``."""
    return resources.files("quire.ui").joinpath("static", name).read_text("utf-8")
