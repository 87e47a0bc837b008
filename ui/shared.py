"""What the tabs have in common: the client, the key, the choice of a model, and how things look as HTML."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import gradio as gr

from quire.ui.client import Answer, Client


@dataclass
class Page:
    """Handed to whoever builds a tab.

    client    the line to the servers
    key       the field with the API key; its value lives in the browser's session
    address   where the browser reaches the server, if the page is the server's own; else empty
    model     the choice of a model; its value is ``target(url, name)``
    meanings  parameter -> what it means
    """

    client: Client
    key: gr.Textbox
    address: gr.Textbox
    model: gr.Dropdown
    meanings: Mapping[str, str]


def target(url: str, model: str) -> str:
    """A model at a server, as one value of a menu."""
    return f"{url} {model}"


def split_target(value: str | None, client: Client) -> tuple[str, str | None]:
    """(url, model) of such a value; without one the first server and whatever it serves. Other servers are refused."""
    url, _, model = (value or "").partition(" ")
    if url not in client.urls:  # the page may send anything, and we do not fetch just any address for it
        return client.urls[0], None
    return url, model


def under_way(stopper: asyncio.Event | None) -> bool:
    """Whether something streams that has not been told to stop. (What failed unforeseen never took its event back.)"""
    return stopper is not None and not stopper.is_set()


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values in a line."""
    items = "".join(f"<div><dt>{escape(name)}</dt> <dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def problem(text: str) -> str:
    """A message that something went wrong; screen readers read it out."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def measured(answer: Answer) -> dict[str, str]:
    """Counts and times of an answer, for people."""
    cached = f" ({answer.cached_tokens:,} cached)" if answer.cached_tokens else ""
    found = {
        "first token": seconds(answer.ttft),
        "speed": "–" if answer.rate is None else f"{answer.rate:,.0f} tokens/s",
        "prompt": f"{answer.prompt_tokens:,} tokens{cached}",
        "answer": f"{answer.completion_tokens:,} tokens",
    }
    if answer.accepted + answer.rejected:
        found["drafts"] = f"{answer.accepted:,} of {answer.accepted + answer.rejected:,} accepted"
    return found


def seconds(value: float | None) -> str:
    """A duration to three digits: 41.2 ms, 1.23 s; a dash for None."""
    if value is None:
        return "–"
    return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.3g} s"
