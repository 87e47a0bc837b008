"""/tokenize and /detokenize: the same tokens that a completion of the same prompt starts from."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.server.config import ServerConfig
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import serve

CHAT = [{"role": "user", "content": "Who wrote it?"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def post(server):
    with server.http() as client:

        def call(path: str, **body):
            return client.post(path, json=body)

        yield call


def refused(response, param: str, *mentions: str) -> None:
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    for text in mentions:
        assert text in error["message"]


def test_a_text(post, server) -> None:
    tokenizer = server.state.engine.assets.get_tokenizer()
    answer = post("/tokenize", model="pocket", prompt="Hello, wörld").json()
    assert answer == {
        "count": len(answer["tokens"]),
        "max_model_len": server.engine.model.max_model_len,
        "tokens": tokenizer.encode("Hello, wörld"),
        "token_strs": None,
    }


def test_the_tokens_names(post, server) -> None:
    answer = post("/tokenize", prompt="Hello there", return_token_strs=True).json()
    assert answer["token_strs"] == server.state.engine.assets.get_tokenizer().convert_ids_to_tokens(answer["tokens"])


def test_an_empty_text_has_no_tokens(post) -> None:
    assert post("/tokenize", prompt="").json()["count"] == 0


def test_a_completion_starts_from_these_tokens(post) -> None:
    tokens = post("/tokenize", prompt="Once upon a time").json()["tokens"]
    answer = post("/v1/completions", prompt="Once upon a time", max_tokens=1, return_token_ids=True).json()
    assert answer["choices"][0]["prompt_token_ids"] == tokens
    assert answer["usage"]["prompt_tokens"] == len(tokens)


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"tools": [TOOL]},
        {"add_generation_prompt": False},
        {"messages": [*CHAT, {"role": "assistant", "content": "It was"}], "continue_final_message": True},
    ],
    ids=["plain", "tools", "no-generation-prompt", "continued"],
)
def test_a_chat_completion_starts_from_these_tokens(post, further: dict) -> None:
    body = {"messages": CHAT} | further
    tokens = post("/tokenize", **body).json()["tokens"]
    answer = post("/v1/chat/completions", **body, max_tokens=1, return_token_ids=True).json()
    assert answer["prompt_token_ids"] == tokens


def test_variables_reach_the_chat_template() -> None:
    settings = ServerConfig(chat_template="{{ greeting }}: {{ messages[0]['content'] }}")
    with serve(engine=ghost_engine(GhostRunner()), server=settings) as live, live.http() as client:
        body = {"messages": CHAT, "chat_template_kwargs": {"greeting": "Hi"}}
        tokens = client.post("/tokenize", json=body).json()["tokens"]
        assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "Hi: Who wrote it?"}


def test_text_of_tokens_keeps_special_ones(post) -> None:
    tokens = post("/tokenize", messages=CHAT).json()["tokens"]
    text = post("/detokenize", model="pocket", tokens=tokens).json()["prompt"]
    assert text.startswith("<|im_start|>") and "Who wrote it?" in text
    assert post("/detokenize", tokens=[]).json() == {"prompt": ""}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_there_and_back(post, text: str) -> None:
    tokens = post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    assert post("/detokenize", tokens=tokens).json()["prompt"] == text


def test_long_texts_and_lists_make_the_same_way(post) -> None:
    """They are handed to a thread."""
    text = "All work and no play. " * 1000
    tokens = post("/tokenize", prompt=text).json()["tokens"]
    assert len(tokens) > 4000
    assert post("/detokenize", tokens=tokens * 2).json()["prompt"] == text * 2


def test_what_belongs_to_the_other_form_is_refused(post) -> None:
    refused(post("/tokenize"), "prompt", "Give prompt or messages")
    refused(post("/tokenize", prompt="a", messages=CHAT), "prompt", "messages are given too")
    refused(post("/tokenize", prompt="a", tools=[TOOL]), "tools", "no effect on a prompt")
    refused(post("/tokenize", prompt="a", add_generation_prompt=False), "add_generation_prompt")
    both = {"add_generation_prompt": True, "continue_final_message": True}
    refused(post("/tokenize", messages=CHAT, **both), "continue_final_message", "Set one of the two to false")


@pytest.mark.parametrize("token", [-1, 4096, 10**12])
def test_token_ids_outside_the_vocabulary(post, token: int) -> None:
    refused(post("/detokenize", tokens=[5, token]), "tokens", str(token), "position 1", "Give ids from 0 to 4095")
