"""What a person does at the playground, as functions over a Playwright page."""

from __future__ import annotations

import json
import re
from typing import Any

from playwright.sync_api import Locator, Page, expect

expect.set_options(timeout=100_000)  # a machine with two cores may be busy with other things


def open_page(page: Page, url: str) -> Page:
    """The page at ``url``, once it knows its server."""
    page.goto(url)
    expect(page.locator("#server .up")).to_be_visible()
    return page


def send(page: Page, text: str) -> None:
    forget(page)
    page.locator("#prompt textarea").fill(text)
    page.get_by_role("button", name="Send").click()


def forget(page: Page) -> None:
    """What the page says of the last answer is old from now on: ``ended`` waits for the next one."""
    page.locator("#chat-status dl").evaluate_all("all => all.forEach((one) => one.setAttribute('data-old', ''))")


def answers(page: Page) -> Locator:
    """The model's messages."""
    return page.locator("#conversation .assistant :is(.said, .call)")


def ended(page: Page, why: str = "stop") -> Locator:
    """Wait until the answer has ended, in this way, and all of it is shown; the line of facts under it."""
    line = page.locator("#chat-status dl:not([data-old])")
    expect(line).to_contain_text(f"ended by {why}")
    expect(page.locator("#conversation [role=log][aria-busy=false]")).to_be_visible()
    return line


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def unfold(page: Page, name: str, inside: Locator) -> None:
    """Open an accordion unless what is in it can be seen already."""
    button = page.get_by_role("button", name=re.compile(f"^{name}"))
    expect(button).to_be_visible()  # else its tab is still to come, and nothing in it can be seen
    if not inside.is_visible():
        button.click()


def setting(page: Page, name: str, value: Any) -> None:
    """Give a setting of the chat a value."""
    tab(page, "Settings")
    kinds = "input[type=number], input[type=checkbox], textarea, input[type=text]"
    field = page.locator(f".set-{name}").first.locator(kinds).first
    unfold(page, "More parameters", field)
    if isinstance(value, bool):
        field.set_checked(value)
    else:
        field.fill(str(value))
        field.blur()


def sent(page: Page) -> dict[str, Any]:
    """The body of the last request, as the page shows it for curl."""
    tab(page, "Request")
    text = page.get_by_role("region", name="curl").locator("pre").inner_text()
    return json.loads(text[text.index("'{") + 1 : text.rindex("'")].replace("'\"'\"'", "'"))
