"""What a client is told about speculative decoding: how many drafts were right, and which tokens were drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from quire.reference.config import EngineConfig
from tests.server.conftest import LiveServer, serve

LIST = "Copy: piano, lucky, zebra, garden, hill, lamp, whale, plum, dog, ring, guard, light"
COPY = {"messages": [{"role": "user", "content": LIST}], "temperature": 0, "max_tokens": 64, "logprobs": True}


@pytest.fixture(scope="module")
def speculating() -> Iterator[LiveServer]:
    config = {"method": "ngram", "num_speculative_tokens": 4, "adaptive": False}
    with serve(EngineConfig(num_blocks=400, speculative_config=config)) as live:
        yield live


@pytest.mark.parametrize("stream", [False, True])
def test_drafts_are_told(speculating: LiveServer, stream: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    with speculating.http() as http:
        response = http.post("/v1/chat/completions", json=COPY | options)
    if stream:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
        usage, choices = events[-1]["usage"], [choice for event in events for choice in event["choices"]]
    else:
        usage, choices = response.json()["usage"], response.json()["choices"]
    tokens = [token for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    drafted = sum(token.get("drafted", False) for token in tokens)
    details = usage["completion_tokens_details"]
    assert len(tokens) == usage["completion_tokens"]
    assert 0 < drafted <= details["accepted_prediction_tokens"]  # a stop may cut off the last ones
    assert details["rejected_prediction_tokens"] >= 0


def test_without_speculation_there_is_nothing_to_tell(speculating: LiveServer) -> None:
    with speculating.http() as http:
        response = http.post("/v1/chat/completions", json=COPY | {"speculative": False}).json()
    assert "completion_tokens_details" not in response["usage"]
    assert not any("drafted" in token for token in response["choices"][0]["logprobs"]["content"])


def test_completions_count_them_too(speculating: LiveServer) -> None:
    prompt = f"<|im_start|>user\n{LIST}<|im_end|>\n<|im_start|>assistant\n"
    with speculating.http() as http:
        usage = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 40, "temperature": 0}).json()[
            "usage"
        ]
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] > 0
