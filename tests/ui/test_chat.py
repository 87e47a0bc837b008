"""The chat in a real browser, in front of a real server on the embedded model."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gradio")

from playwright.sync_api import Page, expect

expect.set_options(timeout=20_000)  # a machine with two cores may be busy with other things


@pytest.fixture
def chat(page: Page, playground: str) -> Page:
    return opened(page, playground)


def opened(page: Page, url: str) -> Page:
    """The page at ``url``, once it knows its server."""
    page.goto(url)
    expect(page.locator("#server .up")).to_be_visible()
    return page


def send(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name="Send").click()


def answers(page: Page):
    return page.locator("#conversation .bot.message")


def ended(page: Page, why: str = "stop") -> None:
    """Wait until the answer has ended, in this way."""
    expect(page.locator("#chat-status")).to_contain_text(f"ended by {why}")


def setting(page: Page, name: str, value: str) -> None:
    """Type a value into one of the settings."""
    page.get_by_role("tab", name="Settings").click()
    more = page.get_by_role("button", name="More parameters")
    field = page.get_by_label(name, exact=True).first
    if not field.is_visible():
        more.click()
    field.fill(value)


def test_a_message_is_answered(chat: Page) -> None:
    send(chat, "What is 417 + 268?")
    ended(chat)
    expect(answers(chat)).to_have_text("417 + 268 = 685")
    expect(chat.locator("#chat-status")).to_contain_text(re.compile(r"first token .*speed .*prompt .*answer 14 tokens"))
