"""The page: its tabs, its looks, and how it is served, alone (``quire ui``) or below a path of the server's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from types import FrameType
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

# A sheet folded twice, which is what a quire is made of.
ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 16 16%22%3E'
    "%3Cpath fill=%22%230f766e%22 d=%22M2 3l6-2v12l-6 2z%22/%3E"
    '%3Cpath fill=%22%2314b8a6%22 d=%22M8 1l6 2v12l-6-2z%22/%3E%3C/svg%3E">'
)


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
            """Ask every server what it serves."""
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

        async def listen(api_key: str, chosen: str | None, known: list[bool] | None) -> dict[Any, Any]:
            """Every few seconds: look again if a server has come or gone."""
            now = [await client.alive(url) for url in client.urls]
            return {up: gr.skip()} if now == known else {up: now, **await look(api_key, chosen)}

        up = gr.State(None)
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
        gr.Timer(5).tick(listen, [key, model, up], [*shown, up], **quiet)
        theme.click(None, js="() => quirePage.theme()")
    return blocks


def status_html(lines: Sequence[tuple[bool, str]]) -> str:
    """A line for each server: whether it answers, and what it says of itself."""
    return "".join(
        f'<p class="{"up" if up else "down"}" role="status"><b aria-hidden="true">{"●" if up else "○"}</b> '
        f"{escape(text)}</p>"
        for up, text in dict.fromkeys(lines)
    )


def mount(app: FastAPI, path: str, urls: Sequence[str], meanings: Mapping[str, str]) -> Callable[[], None]:
    """Put the page at ``path`` of ``app``, in front of the servers at ``urls``.

    Returns what is to be called when ``app`` is to end: open pages hold connections, and never end by themselves.
    """
    client = Client(urls)
    blocks = build_page(client, meanings, own=path != "/")
    app.include_router(routes(client), prefix=path.rstrip("/"))  # before the page, which takes every other address
    blocks.queue(default_concurrency_limit=None)
    head = [ICON, *(f"<script>{source}</script>" for source in (component(), static("page.js")))]
    gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO),
        css=static("page.css"),
        head="\n".join(head),
        footer_links=[],
        run_history=False,  # it would keep what was typed, keys included, beyond the session
        ssr_mode=False,
        mcp_server=False,
        show_error=True,
    )
    mounted = app.routes[-1].app  # type: ignore[attr-defined]  # Gradio's application, which it hands out nowhere else
    end_pages: Callable[[], None] = mounted.stop_event.set
    return end_pages


def server(urls: Sequence[str], meanings: Mapping[str, str]) -> uvicorn.Server:
    """What serves the page at / of an application of its own."""
    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
    end_pages = mount(app, "/", urls, meanings)

    class Http(uvicorn.Server):
        """uvicorn, which lets go of open pages first."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            end_pages()
            super().handle_exit(sig, frame)

    return Http(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def static(name: str) -> str:
    """The text of a file in ``static/``."""
    return resources.files("quire.ui").joinpath("static", name).read_text("utf-8")
