"""The models of requests: every field that OpenAI's SDK can send is classified, and what lists cost."""

from __future__ import annotations

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import ValidationError

from quire.server.protocol.base import RequestModel, field_table
from quire.server.protocol.chat import ChatRequest
from quire.server.protocol.completion import CompletionRequest
from quire.server.protocol.embeddings import EmbeddingRequest
from quire.server.protocol.responses import ResponsesRequest

SDK = {
    CompletionRequest: completion_create_params.CompletionCreateParamsStreaming,
    ChatRequest: chat_create_params.CompletionCreateParamsStreaming,
    ResponsesRequest: response_create_params.ResponseCreateParamsStreaming,
    EmbeddingRequest: embedding_create_params.EmbeddingCreateParams,
}


@pytest.mark.parametrize("model", SDK, ids=lambda model: model.__name__)
def test_every_parameter_of_the_sdk_is_classified(model: type[RequestModel]) -> None:
    rows = field_table(model)
    names = [row.name for row in rows]
    assert set(SDK[model].__annotations__) <= set(names)
    assert len(set(names)) == len(names), "a field that is refused and something else"
    assert {row.status for row in rows} <= {"implemented", "accepted", "refused"}
    assert all(row.note for row in rows if row.status != "implemented"), "a reason is missing"


@pytest.mark.parametrize(
    "model, body",
    [
        (CompletionRequest, {"prompt": [{}] * 100_000}),
        (CompletionRequest, {"prompt": "a", "stop": [5] * 100_000}),
        (ChatRequest, {"messages": [{}] * 100_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 100_000}]}),
        (EmbeddingRequest, {"input": [[5], ["a"] * 100_000]}),
        (EmbeddingRequest, {"input": "a"} | {f"field{i}": i for i in range(100_000)}),
    ],
)
def test_what_is_wrong_a_hundred_thousand_times_is_said_once(model: type[RequestModel], body: dict) -> None:
    """Once for each type that the field may have, that is."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= 4
