"""/v1/completions: prompts of every form, and what of them is refused before it costs anything."""

from __future__ import annotations

import json

import pytest

from tests.server.conftest import LiveServer

NUMBERS = "n best_of seed top_k min_tokens max_tokens logprobs prompt_logprobs priority"


@pytest.fixture(scope="module")
def post(server: LiveServer):
    with server.http() as client:
        yield lambda **body: client.post("/v1/completions", json=body)


@pytest.mark.parametrize("token", [-1, 4096, 2**32, 2**70])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_what_is_no_token_is_refused_by_the_engines_own_words(post, token: int, several: bool) -> None:
    prompt = [[5], [5, token]] if several else [5, token]
    response = post(prompt=prompt, stop=["x"])
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == ("prompt.1" if several else "prompt")
    assert f"{token}: no token of this model, at position 1. Give ids from 0 to 4095" in error["message"]


@pytest.mark.parametrize("field", NUMBERS.split())
@pytest.mark.parametrize("value", [2**70, -(2**70)])
def test_numbers_beyond_all_measure_are_refused_at_once(post, field: str, value: int) -> None:
    response = post(prompt="a", **{field: value})
    assert response.status_code == 400 and response.json()["error"]["param"] == field


@pytest.mark.parametrize("field", ["prompt", "stop", "cache_salt", "model", "user"])
@pytest.mark.parametrize("half", [rb"\uD83d", b"\xed\xa0\xbd"], ids=["escaped", "raw"])
def test_half_a_character_is_refused_wherever_it_is(server: LiveServer, field: str, half: bytes) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1, field: "half"}).encode().replace(b"half", half)
    with server.http(headers={"Content-Type": "application/json"}) as client:
        response = client.post("/v1/completions", content=body)
        whole = client.post("/v1/completions", content=rb'{"prompt": "\uD83D\uDE00", "max_tokens": 1}')
    assert response.status_code == 400 and response.json()["error"]["param"] == field
    assert "surrogate" in response.json()["error"]["message"]
    assert whole.status_code == 200


@pytest.mark.parametrize(
    "options", [{}, {"include_usage": True}, {"continuous_usage_stats": True, "include_usage": True}]
)
def test_usage_is_of_all_prompts_together(server: LiveServer, post, options: dict) -> None:
    size = server.engine.stats().block_size
    prompts = [[first] * (2 * size + 1) for first in (11, 12, 13)]
    body: dict = {"prompt": prompts, "max_tokens": 3, "ignore_eos": True}
    post(**body)
    response = post(**body, **({"stream": True, "stream_options": options} if options else {}))
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    found = (json.loads(lines[-1].removeprefix("data: ")) if options else response.json())["usage"]
    assert found["prompt_tokens"] == sum(map(len, prompts)) and found["completion_tokens"] == 9
    assert found["prompt_tokens_details"]["cached_tokens"] == 3 * 2 * size


def test_running_usage_counts_each_token_once(post) -> None:
    """Also where one step brings tokens of several completions."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "Once", "n": 2, "max_tokens": 3, "ignore_eos": True, "stream": True, "stream_options": options}
    events = [line for line in post(**body).text.splitlines() if line.startswith("data: {")]
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 6
    assert json.loads(events[-1].removeprefix("data: "))["usage"]["completion_tokens"] == 6


def test_token_ids_continue_as_their_text_does(post, server: LiveServer) -> None:
    tokenizer = server.state.engine.assets.get_tokenizer()
    texts = ["Once upon a time", "The capital of Norway is"]
    ids = [tokenizer.encode(text) for text in texts]
    greedy = {"temperature": 0, "max_tokens": 8}
    alone = [post(prompt=text, **greedy).json()["choices"][0]["text"] for text in texts]
    for prompt in (texts, ids):
        choices = post(prompt=prompt, **greedy).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert [choice["text"] for choice in choices] == alone
    assert post(prompt=ids[0], **greedy).json()["choices"][0]["text"] == alone[0]


def test_echo_repeats_the_prompt_with_its_log_probabilities(post) -> None:
    body = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 4, "logprobs": 2}
    plain = post(**body).json()["choices"][0]
    echoed = post(**body, echo=True).json()["choices"][0]
    assert echoed["text"] == body["prompt"] + plain["text"]
    tokens, offsets = echoed["logprobs"]["tokens"], echoed["logprobs"]["text_offset"]
    assert "".join(tokens) == echoed["text"]
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    assert echoed["logprobs"]["token_logprobs"][0] is None and echoed["logprobs"]["top_logprobs"][0] is None
    assert tokens[-4:] == plain["logprobs"]["tokens"]
    assert all(value <= 0 for value in echoed["logprobs"]["token_logprobs"][1:])


def test_a_prompt_can_be_scored_without_a_completion(post) -> None:
    answer = post(prompt="Once upon a time", echo=True, max_tokens=0, logprobs=0).json()
    [choice] = answer["choices"]
    assert choice["text"] == "Once upon a time" and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["token_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 0


def test_best_of_returns_the_likeliest(post) -> None:
    body = {"prompt": "Once upon a time", "seed": 1, "max_tokens": 6, "logprobs": 0, "ignore_eos": True}
    every = post(**body, n=4).json()["choices"]
    best = post(**body, n=2, best_of=4).json()["choices"]

    def score(choice: dict) -> float:
        return sum(choice["logprobs"]["token_logprobs"])

    likeliest = sorted(every, key=score, reverse=True)[:2]
    assert [choice["text"] for choice in best] == [choice["text"] for choice in likeliest]
    assert [choice["index"] for choice in best] == [0, 1]
