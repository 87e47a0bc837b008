"""schemathesis on /openapi.json: whatever a client may send, the server answers as its description says.

Requests are drawn from the schemas, right ones and wrong ones. A schema cannot say all that a server wants (a model's
name, fields that exclude each other), so many right ones are refused too; a third kind, of few fields with sensible
values, is mostly served. The engine is a ghost: of interest here is only the form of what it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import LiveServer, serve

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

OPERATIONS = """
    GET /ready, GET /health, GET /version, GET /metrics, POST /reset_prefix_cache, POST /tokenize, POST /detokenize,
    GET /v1/models, GET /v1/models/{model_id}, POST /v1/completions, POST /v1/chat/completions, POST /v1/embeddings,
    POST /v1/responses, GET /v1/responses/{response_id}, DELETE /v1/responses/{response_id},
    GET /v1/responses/{response_id}/input_items, GET /trace
"""
OPERATIONS = [operation.strip() for operation in OPERATIONS.split(",")]
WITH_BODY = [name for name in OPERATIONS if name.startswith("POST") and "reset" not in name]


def number(low: float, high: float) -> dict:
    return {"type": "number", "minimum": low, "maximum": high}


def integer(low: int, high: int) -> dict:
    """To JSON schemas 2.0 is one as well, which the server refuses, as OpenAI does."""
    return {"enum": list(range(low, high + 1))}


def several(items: dict, low: int = 1, high: int = 3) -> dict:
    return {"type": "array", "items": items, "minItems": low, "maxItems": high}


TEXT = {"type": "string", "minLength": 1, "maxLength": 10}
TOKENS = several(integer(0, 4095), 1, 8)
SAMPLING = {
    "temperature": number(0, 2),
    "top_p": number(0.1, 1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0.5, 2),
    "seed": integer(0, 100),
    "stop": several(TEXT),
    "stream": {"type": "boolean"},
    "n": integer(1, 3),
    "ignore_eos": {"type": "boolean"},
    "return_token_ids": {"type": "boolean"},
}
MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": TEXT},
    "required": ["role", "content"],
    "additionalProperties": False,
}
# By the name of a request's schema; the first field is always there.
SENSIBLE: dict[str, dict[str, dict]] = {
    "CompletionRequest": {"prompt": {"anyOf": [TEXT, TOKENS, several(TEXT), several(TOKENS)]}}
    | SAMPLING
    | {"max_tokens": integer(1, 8), "echo": {"type": "boolean"}, "logprobs": integer(0, 3)},
    "ChatRequest": {"messages": several(MESSAGE)}
    | SAMPLING
    | {"max_tokens": integer(1, 8), "logprobs": {"type": "boolean"}},
    "ResponsesRequest": {"input": TEXT, "max_output_tokens": integer(16, 20), "stream": {"type": "boolean"}}
    | {"temperature": number(0, 2)},
    "EmbeddingRequest": {"input": {"anyOf": [TEXT, TOKENS, several(TEXT), several(TOKENS)]}}
    | {"encoding_format": {"enum": ["float", "base64"]}, "dimensions": integer(1, 4)},
    "TokenizeRequest": {"prompt": TEXT, "return_token_strs": {"type": "boolean"}},
    "DetokenizeRequest": {"tokens": TOKENS},
}


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serve(engine=ghost_engine(GhostRunner(vocab_size=4096), max_model_len=128)) as live:
        yield live


def description(live: LiveServer, sensible: bool = False) -> Any:
    """What the server says of itself; ``sensible``: with few fields, of values that make sense."""
    with live.http() as client:
        said = client.get("/openapi.json").json()
    if sensible:
        for name, fields in SENSIBLE.items():
            said["components"]["schemas"][name] |= {"properties": fields, "required": [next(iter(fields))]}
    found = schemathesis.openapi.from_dict(said)
    found.config.update(base_url=live.url)
    return found


def operation(description: Any, name: str) -> Any:
    method, path = name.split()
    return description[path][method]


def test_every_operation_is_tested(live) -> None:
    assert {found.ok().label for found in description(live).get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_right_request_is_answered_as_described(live, name: str) -> None:
    hold(operation(description(live), name).as_strategy())


@pytest.mark.parametrize("name", WITH_BODY)
def test_a_wrong_request_is_refused_as_described(live, name: str) -> None:
    statuses = hold(operation(description(live), name).as_strategy(generation_mode=GenerationMode.NEGATIVE))
    assert all(400 <= status < 500 for status in statuses)


@pytest.mark.parametrize("name", WITH_BODY)
def test_a_sensible_request_is_served(live, name: str) -> None:
    statuses = hold(operation(description(live, sensible=True), name).as_strategy())
    assert statuses.count(200) > len(statuses) / 2


def hold(strategy: Any) -> list[int]:
    """Send requests until ``CHECKS`` fail or they are enough; the statuses of their answers."""
    statuses = []

    @settings(suppress_health_check=list(HealthCheck), max_examples=30)
    @given(case=strategy)
    def send(case: Any) -> None:
        statuses.append(case.call_and_validate(checks=CHECKS).status_code)

    send()
    return statuses
