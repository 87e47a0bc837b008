"""The chat in a real browser, in front of a real server on the embedded model."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from tests.server.conftest import eventually
from tests.ui.steps import answers, ended, forget, open_page, send, sent, setting, tab, unfold

ENDLESS = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture
def chat(page: Page, playground: str) -> Page:
    return open_page(page, playground)


def test_a_message_is_answered(chat: Page, screenshot) -> None:
    """With its counts and times, and its tokens: the likeliest ones at each place, by mouse and by keyboard."""
    send(chat, "What is 417 + 268?")
    facts = ended(chat)
    expect(answers(chat)).to_have_text("417 + 268 = 685")
    expect(facts).to_contain_text(re.compile(r"first token .*speed .*prompt .*answer 14 tokens"))
    tab(chat, "Tokens")
    tokens = chat.locator(".tokens .tok")
    expect(tokens).to_have_count(14)
    tokens.nth(2).hover()
    expect(tokens.nth(2).locator(".alts tr")).to_have_count(5)
    expect(tokens.nth(2).locator(".alts .chosen")).to_contain_text("7")
    chat.mouse.move(0, 0)
    tokens.first.focus()
    chat.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1).locator(".alts")).to_be_visible()


def test_an_answer_streams_and_can_be_stopped(chat: Page, engine_server, unhurried) -> None:
    """It grows on the page; after Stop it is kept, the server computes no further, and the page goes on."""
    for name, value in ENDLESS.items():
        setting(chat, name, value)
    send(chat, "Tell me a story about a fox.")
    expect(answers(chat)).to_have_text(re.compile(r".{20}"))
    short = answers(chat).inner_text()
    expect(answers(chat)).to_have_text(re.compile(f".{{{len(short) + 20}}}", re.S))
    chat.get_by_role("button", name="Stop", exact=True).click()
    ended(chat, "stopped")
    assert answers(chat).inner_text().startswith(short)
    eventually(lambda: not engine_server.engine.stats().num_running)  # the server computes no further
    setting(chat, "max_tokens", 30)
    setting(chat, "ignore_eos", False)
    send(chat, "What is 2 + 3?")
    ended(chat)
    expect(answers(chat).last).to_have_text("2 + 3 = 5")


def test_regenerate_and_edit(chat: Page) -> None:
    """With a seed the same text comes again. An edited message forgets what came after it."""
    setting(chat, "seed", 7)
    setting(chat, "max_tokens", 24)
    send(chat, "Tell me a story about a hawk.")
    ended(chat, "length")
    story = answers(chat).inner_text()
    forget(chat)
    chat.locator("#again").click()
    ended(chat, "length")
    expect(answers(chat)).to_have_count(1)
    assert answers(chat).inner_text() == story
    send(chat, "What is 2 + 3?")
    expect(answers(chat)).to_have_count(2)
    ended(chat)
    chat.get_by_role("button", name="Edit").first.click()
    expect(chat.get_by_label("Change the message")).to_have_value("Tell me a story about a hawk.")
    chat.get_by_label("Change the message").fill("What is 58 + 367?")
    chat.keyboard.press("Enter")
    expect(answers(chat)).to_have_count(1)
    expect(answers(chat)).to_have_text("58 + 367 = 425")


def test_every_setting_is_sent(chat: Page) -> None:
    """All of them at once, each with a value that is not its default."""
    values = {
        "temperature": 0.3, "top_p": 0.9, "max_tokens": 5, "seed": 3, "top_k": 40, "min_p": 0.01,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.05, "n": 2, "min_tokens": 1,
        "ignore_eos": True, "include_stop_str_in_output": True, "skip_special_tokens": False, "speculative": False,
        "cache_salt": "mine", "priority": 1,
    }  # fmt: skip
    typed = {
        "stop": ("one\ntwo", ["one", "two"]), "stop_token_ids": ("5, 6", [5, 6]), "bad_words": ("whale", ["whale"]),
        "allowed_token_ids": (" ".join(map(str, range(300, 400))), list(range(300, 400))),
        "logit_bias": ('{"42": -100}', {"42": -100}),
    }  # fmt: skip
    chat.get_by_label("System prompt").first.fill("You are a museum.")
    for name, value in [*values.items(), *((name, text) for name, (text, _) in typed.items())]:
        setting(chat, name, value)
    send(chat, "It's <me>")
    ended(chat, "length")
    body = sent(chat)
    wanted = values | {name: value for name, (_, value) in typed.items()} | {"logprobs": True, "top_logprobs": 5}
    assert body.pop("messages") == [
        {"role": "system", "content": "You are a museum."}, {"role": "user", "content": "It's <me>"},
    ]  # fmt: skip
    assert body.pop("model") == "pocket"
    assert body == wanted
    expect(answers(chat)).to_have_count(2)  # n


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("seed", "seven", "seed: 'seven' is not an integer"),
        ("logit_bias", "{42}", "logit_bias: no valid JSON"),
        ("stop_token_ids", "two", "stop_token_ids: 'two' is no list of token ids"),
        ("min_p", "2", "min_p=2.0: not a finite number in the allowed range"),
    ],
)
def test_a_wrong_setting_is_explained(chat: Page, name: str, value: str, says: str) -> None:
    """By the page where it cannot be read, else by the server; once it is corrected the page goes on."""
    setting(chat, name, value)
    send(chat, "What is 2 + 3?")
    expect(chat.get_by_role("alert")).to_contain_text(says)
    setting(chat, name, "")
    forget(chat)
    chat.locator("#again").click()
    ended(chat)
    expect(answers(chat)).to_have_text("2 + 3 = 5")


def test_examples_of_structured_outputs(chat: Page) -> None:
    chat.get_by_role("button", name="JSON by a schema").click()
    expect(chat.locator("#prompt textarea")).to_have_value(re.compile("Emil"))
    chat.get_by_role("button", name="Send").click()
    ended(chat)
    assert json.loads(answers(chat).last.inner_text()) == {"name": "Emil", "city": "Sydney", "job": "doctor"}
    chat.get_by_role("button", name="New conversation").click()
    expect(answers(chat)).to_have_count(0)
    chat.get_by_role("button", name="One of a list").click()
    expect(chat.locator("#prompt textarea")).to_have_value(re.compile("417"))
    chat.get_by_role("button", name="Send").click()
    ended(chat)
    assert answers(chat).last.inner_text() in ("yes", "no", "I don't know")
    unfold(chat, "Form of the answer", chat.get_by_label("Definition"))


def test_a_tool_is_called_and_its_result_read(chat: Page) -> None:
    """The next message is the call's result, as the page says."""
    chat.get_by_role("button", name="Call a tool").click()
    expect(chat.locator("#prompt textarea")).to_have_value(re.compile("Oslo"))
    chat.get_by_role("button", name="Send").click()
    ended(chat, "tool_calls")
    expect(answers(chat).last).to_contain_text("calls get_weather")
    send(chat, '{"weather": "sunny"}')
    ended(chat)
    expect(answers(chat).last).to_contain_text("sunny")
    roles = [message["role"] for message in sent(chat)["messages"]]
    assert roles == ["user", "assistant", "tool"]


def test_a_conversation_can_be_saved(chat: Page) -> None:
    send(chat, "What is 2 + 3?")
    ended(chat)
    with chat.expect_download() as found:
        chat.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(found.value.path().read_text("utf-8"))
    assert [turn["content"] for turn in saved["turns"]] == ["What is 2 + 3?", "2 + 3 = 5"]
    assert saved["turns"][1]["tokens"] and saved["parameters"]["max_tokens"] == 256
    with chat.expect_download() as found:
        chat.get_by_role("button", name="Save as Markdown").click()
    assert "## assistant\n\n```text\n2 + 3 = 5\n```" in found.value.path().read_text("utf-8")


def test_drafts_are_marked(chat: Page) -> None:
    setting(chat, "temperature", 0)
    send(chat, "Copy: piano, lucky, zebra, garden, hill, lamp, whale, plum, dog, ring, guard, light")
    expect(ended(chat)).to_contain_text("accepted")
    tab(chat, "Tokens")
    assert chat.locator(".tokens .tok.drafted").count() > 3
