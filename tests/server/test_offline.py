"""What the server says is what ``LLM`` says offline, streamed or not: text, tokens, log-probabilities, usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire import LLM
from quire.reference.config import EngineConfig
from tests.server.conftest import LiveServer, serve

# Whatever meets in a batch, and requests meet differently in each of the three, must not change a bit.
ENGINE = {"num_blocks": 200, "max_num_seqs": 16, "max_num_batched_tokens": 64, "batch_invariant": True}
PROMPTS = ["Once upon a time", "The capital of Norway is", "1, 2, 3,", "def add(a, b):\n"]
EXAMPLES = settings(max_examples=20, suppress_health_check=[*HealthCheck])
PARAMETERS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 12), "temperature": st.sampled_from([0, 0.7, 1.5]), "seed": st.integers(0, 99)},
    optional={
        "n": st.integers(1, 3),
        "top_p": st.sampled_from([0.3, 0.9]),
        "top_k": st.integers(1, 20),
        "min_p": st.sampled_from([0.05, 0.5]),
        "repetition_penalty": st.sampled_from([0.8, 1.3]),
        "frequency_penalty": st.sampled_from([-1.0, 0.5]),
        "stop": st.lists(st.sampled_from(["e", " th", "\n", ", "]), min_size=1, max_size=2),
        "include_stop_str_in_output": st.booleans(),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(st.integers(0, 4095), max_size=3),
    },
)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serve(EngineConfig(**ENGINE)) as live:
        yield live


@pytest.fixture(scope="module")
def offline() -> Iterator[LLM]:
    with LLM(**ENGINE) as llm:
        yield llm


def events(live: LiveServer, path: str, **body) -> list[dict]:
    """The events of a stream, which ends as it should."""
    with live.http() as client, client.stream("POST", path, json={**body, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert response.status_code == 200 and lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def answer(live: LiveServer, path: str, **body) -> dict:
    with live.http() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@EXAMPLES
@given(prompts=st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3), params=PARAMETERS)
def test_completions(live, offline, prompts: list[str], params: dict) -> None:
    asked = replace(offline.get_default_sampling_params(), **params, logprobs=1)
    expected = [c for output in offline.generate(prompts, asked, use_tqdm=False) for c in output.outputs]
    body = {**params, "prompt": prompts, "logprobs": 1, "return_token_ids": True}
    whole = answer(live, "/v1/completions", **body)
    *parts, last = events(live, "/v1/completions", **body, stream_options={"include_usage": True})

    assert len(whole["choices"]) == len(expected)
    for index, (choice, completion) in enumerate(zip(whole["choices"], expected)):
        assert choice["index"] == index
        assert (choice["text"], choice["token_ids"]) == (completion.text, completion.token_ids)
        assert (choice["finish_reason"], choice["stop_reason"]) == (completion.finish_reason, completion.stop_reason)
        assert choice["logprobs"]["token_logprobs"] == [
            entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs)
        ]
        pieces = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [*chain.from_iterable(piece["token_ids"] for piece in pieces)] == choice["token_ids"]
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            assert [*chain.from_iterable(piece["logprobs"][name] for piece in pieces)] == choice["logprobs"][name]
        reasons = [piece["finish_reason"] for piece in pieces]
        assert reasons == [None] * (len(reasons) - 1) + [choice["finish_reason"]]
    assert last["choices"] == [] and all(part["usage"] is None for part in parts)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole["usage"][name]
    assert whole["usage"]["completion_tokens"] == sum(len(c.token_ids) for c in expected)


@EXAMPLES
@given(question=st.sampled_from(PROMPTS), params=PARAMETERS)
def test_chat(live, offline, question: str, params: dict) -> None:
    messages = [{"role": "user", "content": question}]
    asked = replace(offline.get_default_sampling_params(), **params)
    [output] = offline.chat(messages, asked, use_tqdm=False)
    body = {**params, "messages": messages, "return_token_ids": True}
    whole = answer(live, "/v1/chat/completions", **body)
    *parts, last = events(live, "/v1/chat/completions", **body, stream_options={"include_usage": True})

    assert len(whole["choices"]) == len(output.outputs)
    for choice, completion in zip(whole["choices"], output.outputs):
        assert (choice["message"]["content"], choice["token_ids"]) == (completion.text, completion.token_ids)
        pieces = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert pieces[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["delta"].get("content", "") for piece in pieces) == completion.text
        assert [*chain.from_iterable(piece.get("token_ids", []) for piece in pieces)] == completion.token_ids
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == [choice["finish_reason"]]
        assert choice["finish_reason"] == completion.finish_reason
    assert whole["prompt_token_ids"] == output.prompt_token_ids
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert whole["usage"]["prompt_tokens"] == len(output.prompt_token_ids)
