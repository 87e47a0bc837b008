"""/v1/embeddings, asked with OpenAI's own client: the vectors are those of ``LLM.embed``, whichever way they travel.

The engine is batch-invariant here, so that equal means equal to the last bit, whatever else is in the batch.
"""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest

from quire import LLM, PoolingParams
from quire.reference.config import EngineConfig
from tests.server.conftest import LiveServer, serve

TEXTS = ["The sea was calm.", "Numbers: 1, 2, 3", "Wörter und Zeichen 🎉", "a"]


@pytest.fixture(scope="module")
def server():
    with serve(EngineConfig(max_model_len=512, max_num_batched_tokens=256, batch_invariant=True)) as live:
        yield live


@pytest.fixture(scope="module")
def sdk(server: LiveServer):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.embeddings


@pytest.fixture(scope="module")
def llm():
    with LLM(batch_invariant=True) as one:
        yield one


def vectors(response) -> np.ndarray:
    assert [item.index for item in response.data] == list(range(len(response.data)))
    return np.array([item.embedding for item in response.data], np.float32)


def of_llm(llm: LLM, prompts: list, params: PoolingParams | None = None) -> np.ndarray:
    return np.array([o.outputs.embedding for o in llm.embed(prompts, params, use_tqdm=False)], np.float32)


def test_vectors_are_those_of_the_offline_engine(sdk, llm) -> None:
    found = sdk.create(model="pocket", input=TEXTS)
    assert np.array_equal(vectors(found), of_llm(llm, TEXTS))
    assert np.allclose(np.linalg.norm(vectors(found), axis=1), 1, atol=1e-6)
    assert (found.object, found.model) == ("list", "pocket")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_every_kind_of_pooling(sdk, llm, pooling: str) -> None:
    ask = {"model": "pocket", "input": TEXTS}
    found = vectors(sdk.create(**ask, extra_body={"pooling": pooling, "normalize": False}))
    expected = of_llm(llm, TEXTS, PoolingParams(pooling=pooling, normalize=False))
    assert np.array_equal(found, expected)
    newer = vectors(sdk.create(**ask, extra_body={"pooling": pooling, "use_activation": False}))
    assert np.array_equal(found, newer)


def test_all_four_forms_of_input_mean_the_same(sdk, server) -> None:
    tokenizer = server.state.engine.assets.get_tokenizer()
    ids = [tokenizer.encode(text) for text in TEXTS]
    expected = vectors(sdk.create(model="pocket", input=TEXTS))
    assert np.array_equal(vectors(sdk.create(model="pocket", input=ids)), expected)
    assert np.array_equal(vectors(sdk.create(model="pocket", input=TEXTS[1])), expected[1:2])
    assert np.array_equal(vectors(sdk.create(model="pocket", input=ids[1])), expected[1:2])


def test_usage_counts_the_tokens_of_all_inputs(sdk, server) -> None:
    tokenizer = server.state.engine.assets.get_tokenizer()
    used = sdk.create(model="pocket", input=TEXTS).usage
    assert used.prompt_tokens == used.total_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)


def test_numbers_and_base64_are_the_same(server) -> None:
    with server.http() as http:
        body = {"input": TEXTS, "dimensions": 7}
        plain, numbers, text = (
            http.post("/v1/embeddings", json=body | further).json()["data"]
            for further in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"})
        )
    assert plain == numbers
    for a, b in zip(numbers, text):
        assert np.array_equal(np.frombuffer(base64.b64decode(b["embedding"]), "<f4"), np.float32(a["embedding"]))


@pytest.mark.parametrize("dimensions", [1, 64, 256])
def test_fewer_dimensions_are_the_first_ones_normalised_anew(sdk, dimensions: int) -> None:
    whole = vectors(sdk.create(model="pocket", input=TEXTS, extra_body={"normalize": False}))[:, :dimensions]
    found = vectors(sdk.create(model="pocket", input=TEXTS, dimensions=dimensions))
    assert found.shape == (len(TEXTS), dimensions)
    assert np.allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)


def test_an_input_may_fill_the_context_and_may_be_cut_to_it(sdk, server) -> None:
    limit = server.engine.model.max_model_len
    ids = [5 + i % 1000 for i in range(limit + 10)]
    first, last = ids[:limit], ids[10:]
    cut = {"truncate_prompt_tokens": -1}
    expected = vectors(sdk.create(model="pocket", input=[first, last]))
    found = [
        sdk.create(model="pocket", input=ids, extra_body=cut),
        sdk.create(model="pocket", input=ids, extra_body=cut | {"truncation_side": "left"}),
    ]
    assert np.array_equal(np.concatenate([vectors(f) for f in found]), expected)
    assert [f.usage.prompt_tokens for f in found] == [limit, limit]
    three = sdk.create(model="pocket", input=[ids[:3], ids], extra_body={"truncate_prompt_tokens": 3})
    assert np.array_equal(*vectors(three))


def test_one_input_too_long_refuses_all_and_leaves_nothing_running(sdk, server) -> None:
    limit = server.engine.model.max_model_len
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.create(model="pocket", input=[[5] * 10, [5] * (limit + 1)])
    assert (caught.value.param, caught.value.code) == ("input.1", "context_length_exceeded")
    assert server.state.engine.num_open == 0


def test_a_user_has_no_effect(sdk) -> None:
    assert np.array_equal(
        vectors(sdk.create(model="pocket", input="a", user="somebody")), vectors(sdk.create(model="pocket", input="a"))
    )
