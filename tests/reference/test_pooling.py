"""Embeddings: what transformers' ``last_hidden_state`` makes of a prompt, whatever the chunks and neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from quire import LLM, PoolingParams
from quire.reference.ops import invariant
from quire.reference.pooling import PooledRow
from quire.reference.runner import ModelRunner
from tests.reference.models.driver import CONFIGS, VOCAB, hf_model, load, save
from tests.runner_suite import Bench

PROMPTS = [[(7 * i * i + 3 * n) % VOCAB for i in range(n)] for n in (1, 30, 5, 61)]


def bench(model: Any, dtype: torch.dtype = torch.float32) -> Bench:
    return Bench(ModelRunner, lambda device: model, dtype=dtype, num_blocks=100)


def expected(states: torch.Tensor, params: PoolingParams) -> torch.Tensor:
    """The definition: last_hidden_state [n, hidden_size] to a vector."""
    vector = (states.mean(0) if params.pooling == "mean" else states[-1])[: params.dimensions]
    return torch.nn.functional.normalize(vector, dim=0) if params.normalize else vector


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = AutoModel.from_pretrained(save(hf_model(name), tmp_path), attn_implementation="eager").eval()
    model = load(tmp_path)
    with torch.inference_mode():
        states = [theirs(torch.tensor([p])).last_hidden_state[0] for p in PROMPTS]
    for params in (PoolingParams(normalize=False), PoolingParams(pooling="last"), PoolingParams(dimensions=7)):
        for mine, hidden in zip(bench(model).embed(PROMPTS, params, 11), states):
            torch.testing.assert_close(torch.tensor(mine), expected(hidden, params), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("params", [PoolingParams(), PoolingParams(pooling="last", normalize=False, dimensions=5)])
def test_on_invariant_ops_chunks_and_neighbours_leave_no_trace(params, dtype, tmp_path: Path) -> None:
    model = load(save(hf_model("llama3"), tmp_path), ops=invariant, dtype=dtype)

    def embed(prompts, chunk):
        return bench(model, getattr(torch, dtype)).embed(prompts, params, chunk)

    alone = [embed([prompt], 64)[0].tobytes() for prompt in PROMPTS]
    for chunk in (1, 7, 20):
        assert [v.tobytes() for v in embed(PROMPTS, chunk)] == alone


@settings(max_examples=50)
@given(data=st.data())
def test_a_mean_does_not_depend_on_the_order_of_its_sum(data) -> None:
    hidden = torch.tensor(data.draw(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40)))[:, None]
    cuts = sorted(data.draw(st.lists(st.integers(1, len(hidden)), max_size=4)))
    whole, parts = (PooledRow(PoolingParams(normalize=False)) for _ in range(2))
    whole.add(hidden)
    shuffled = hidden[torch.tensor(data.draw(st.permutations(range(len(hidden)))))]
    for piece in torch.tensor_split(shuffled, cuts):
        if len(piece):
            parts.add(piece)
    assert torch.equal(whole.embedding(), parts.embedding())
    torch.testing.assert_close(whole.embedding(), hidden.double().mean(0).float(), atol=2**-28, rtol=1e-7)


def test_the_embedded_model_against_transformers() -> None:
    """``LLM.embed`` on pocket, its prompts in chunks of 64."""
    texts = ["The quick brown fox.", "What is a KV cache? " * 30, "a"]
    llm = LLM("pocket", dtype="float32", num_blocks=200, max_num_batched_tokens=64)
    theirs = AutoModel.from_pretrained(llm.assets.path, dtype=torch.float32).eval()
    outputs = llm.embed(texts)
    for text, output in zip(texts, outputs, strict=True):
        ids = llm.get_tokenizer()(text)["input_ids"]
        assert output.prompt == text and output.prompt_token_ids == ids and output.finished
        with torch.inference_mode():
            vector = expected(theirs(torch.tensor([ids])).last_hidden_state[0], PoolingParams())
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), vector, atol=1e-5, rtol=1e-4)
