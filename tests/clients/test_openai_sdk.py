"""The openai SDK against a live server: what a program written for OpenAI does, unchanged but for the address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
from pydantic import BaseModel

from quire.server.config import ServerConfig
from tests.reference.ghost import ghost_engine
from tests.server.conftest import PATIENCE, LiveServer, eventually, serve

HELLO = [{"role": "user", "content": "Hello!"}]
GREEDY = {"model": "", "temperature": 0, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str
    age: int


def sdk(live: LiveServer, kind: type = openai.OpenAI, **options):
    return kind(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=PATIENCE, **options)


def greedy(live: LiveServer) -> dict:
    return {**GREEDY, "model": live.state.model_names[0]}


def test_streamed_chat_is_the_whole_chat(server):
    with sdk(server) as client:
        whole = client.chat.completions.create(messages=HELLO, **greedy(server))
        chunks = list(
            client.chat.completions.create(
                messages=HELLO, stream=True, stream_options={"include_usage": True}, **greedy(server)
            )
        )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens > 0


async def test_async_chat_is_the_sync_chat(server):
    with sdk(server) as client:
        expected = client.chat.completions.create(messages=HELLO, **greedy(server))
    async with sdk(server, openai.AsyncOpenAI) as client:
        found = await client.chat.completions.create(messages=HELLO, **greedy(server))
        stream = await client.chat.completions.create(messages=HELLO, stream=True, **greedy(server))
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert found.choices[0].message.content == text == expected.choices[0].message.content


def test_completions_stream_to_the_same_text(server):
    with sdk(server) as client:
        whole = client.completions.create(prompt="Once upon a time", **greedy(server))
        parts = client.completions.create(prompt="Once upon a time", stream=True, **greedy(server))
        assert "".join(p.choices[0].text for p in parts) == whole.choices[0].text != ""


def test_a_seed_repeats_and_n_answers_come_with_logprobs(server):
    wanted = {**greedy(server), "temperature": 1, "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2}
    with sdk(server) as client:
        first, again = (client.chat.completions.create(messages=HELLO, **wanted) for _ in range(2))
    assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
    assert [c.index for c in first.choices] == [0, 1, 2]
    for choice in first.choices:
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)


@pytest.mark.parametrize(
    "change, kind, param",
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"model": "nobody"}, openai.NotFoundError, "model"),
    ],
)
def test_errors_are_the_sdks_own(server, change, kind, param):
    with sdk(server) as client, pytest.raises(kind) as caught:
        client.chat.completions.create(messages=HELLO, **{**greedy(server), **change})
    assert caught.value.param == param and caught.value.body["message"]


def ask(live: LiveServer, words: str, **more) -> dict:
    return {"model": live.state.model_names[0], "messages": [{"role": "user", "content": words}], **more}


@pytest.mark.parametrize(
    "words, cities", [("weather in Oslo?", ["Oslo"]), ("weather in both cities?", ["Oslo", "Rome"])]
)
def test_tools_are_called_of_the_models_own_accord(scripted, words, cities):
    with sdk(scripted) as client:
        answer = client.chat.completions.create(**ask(scripted, words, tools=[WEATHER])).choices[0]
        with client.chat.completions.stream(**ask(scripted, words, tools=[WEATHER])) as stream:
            streamed = stream.get_final_completion().choices[0]
    for choice in (answer, streamed):
        calls = [call.function for call in choice.message.tool_calls]
        assert choice.finish_reason == "tool_calls" and {call.name for call in calls} == {"weather"}
        assert [json.loads(call.arguments)["city"] for call in calls] == cities


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_keeps_to_the_tools_schema(server, choice):
    """The embedded model itself, hot: the grammar alone makes a call of what it says."""
    city = {"type": "string", "enum": ["Oslo", "Rome"]}
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": city},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    request = ask(server, "Hello", tools=[tool], tool_choice=choice, parallel_tool_calls=False, temperature=1, seed=1)
    with sdk(server) as client:
        message = client.chat.completions.create(**request, max_tokens=200).choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")


def test_parse_gives_an_object_of_the_class(scripted):
    with sdk(scripted) as client:
        answer = client.chat.completions.parse(**ask(scripted, "Who is Ada?", response_format=Person))
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


def test_embeddings_are_the_same_in_either_encoding(server):
    """Where nothing is said the SDK asks for base64 and decodes it."""
    texts = ["Once upon a time", "in the West"]
    with sdk(server) as client:
        packed = client.embeddings.create(model="pocket", input=texts)
        plain = client.embeddings.create(model="pocket", input=texts, encoding_format="float")
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6) and len(one.embedding) == 256


def test_a_wrong_key_is_an_authentication_error():
    with serve(engine=ghost_engine(), server=ServerConfig(api_key="secret")) as live:
        with sdk(live) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with sdk(live).with_options(api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["pocket"]


@contextmanager
def stuck(**settings) -> Iterator[tuple[LiveServer, threading.Event]]:
    """A server whose engine does not get on, until the event is set."""
    with serve(engine=ghost_engine(), server=ServerConfig(**settings)) as live:
        go_on, step = threading.Event(), live.engine.step
        live.engine.step = lambda: go_on.wait() and step()
        try:
            yield live, go_on
        finally:
            go_on.set()


def test_the_servers_time_limit_is_a_504():
    with stuck(request_timeout=0.01) as (live, _), sdk(live) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="pocket", prompt=[1, 2])
        assert caught.value.status_code == 504 and caught.value.code == "timeout"


def test_the_clients_own_time_limit_aborts_the_request():
    added, aborted = [], []
    with stuck() as (live, go_on):
        add, abort = live.engine.add_request, live.engine.abort_request
        live.engine.add_request = lambda *a, **kw: added.append(kw["request_id"]) or add(*a, **kw)
        live.engine.abort_request = lambda request_id: aborted.append(request_id) or abort(request_id)
        with sdk(live) as client:
            client.models.list()  # connected, so that two seconds are enough to reach the engine
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=2).completions.create(model="pocket", prompt=[1, 2])
        eventually(lambda: not live.state.num_running)  # the server has noticed
        go_on.set()
        eventually(lambda: aborted)
    assert aborted == added and live.engine.stats().blocks_used == 0
