"""langchain-openai under LangChain's own standard tests of chat models, against a live server.

They run twice: on the embedded model what needs no skill, all of it on a scripted one that calls the right tool. What
is skipped asks for images, audio or PDF, which these models do not take, or for recordings of a paid service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from quire.server.config import ServerConfig
from tests.server.conftest import LiveServer, serve
from tests.server.scripted import scripted_engine

JOKE = json.dumps({"setup": "What do cats read?", "punchline": "Mewspapers."})


def asked(*words: str):
    """A rule's condition: these words are in the last thing that the user or a tool said."""
    return lambda prompt: all(word in prompt.split("<|im_start|>")[-2] for word in words)


def call(name: str, **arguments) -> str:
    """A call of the model's own accord."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def forced(name: str, **arguments) -> str:
    """A call where the client demands one, of whichever tool."""
    return json.dumps([{"name": name, "arguments": arguments}], ensure_ascii=False)


RULES = [
    (asked("magic_function(3)"), forced("magic_function", input=3)),
    (asked("magic_function_no_args"), forced("magic_function_no_args")),
    (asked("Pirate greeting"), forced("greeting_generator", answer_style="pirate")),
    (asked("What is 3 + 4"), forced("my_adder_tool", a=3, b=4)),
    (asked("你好啊集团"), forced("unicode_customer", customer_name="你好啊集团", description="technology")),
    (asked("こんにちは株式会社"), forced("unicode_customer", customer_name="こんにちは株式会社", description="firm")),
    (asked("San Francisco"), call("get_weather", location="San Francisco, CA")),
    (asked("joke about cats"), JOKE),
    (asked("Hello!"), json.dumps({"input": 3})),  # magic_function by its name
    (asked("Hello!"), forced("get_weather", location="Oslo")),
    (lambda prompt: True, "Hello to you too."),
]


class Standard(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    max_tokens: int | None = None

    @pytest.fixture(autouse=True)
    def connected(self, live) -> None:
        self.url = f"{live.url}/v1"

    @property
    def chat_model_params(self) -> dict:
        client = {"base_url": self.url, "api_key": "unused"}
        return {**client, "model": "pocket", "max_tokens": self.max_tokens, "stream_usage": True}


class TestEmbedded(Standard):
    """What needs no skill. Left to itself the model writes JSON strings without an end, and calls no tools."""

    has_tool_calling = False
    has_structured_output = False
    supports_model_override = False  # this server knows one name
    max_tokens = 24

    @pytest.fixture
    def live(self, server):
        return server


class TestScripted(Standard):
    supports_json_mode = True
    model_override_value = "other"

    @pytest.fixture
    def live(self, joker):
        return joker


@pytest.fixture(scope="module")
def joker() -> Iterator[LiveServer]:
    with serve(engine=scripted_engine(RULES), server=ServerConfig(served_model_name=("pocket", "other"))) as live:
        yield live
