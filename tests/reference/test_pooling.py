"""Embeddings: what transformers' ``last_hidden_state`` makes of a prompt, whatever the chunks and neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from quire import LLM, PoolingParams
from quire.reference.control.params import SamplingParams
from quire.reference.ops import invariant
from quire.reference.pooling import PooledRow
from tests.reference.models.driver import CONFIGS, VOCAB, hf_model, load, save
from tests.reference.test_runner import Bench, hash_of, new_seq

PROMPTS = [[(7 * i * i + 3 * n) % VOCAB for i in range(n)] for n in (1, 30, 5, 61)]


class PoolingBench(Bench):
    """Plans written by hand for rows that pool: each prompt in chunks, all of them side by side."""

    def embed(self, prompts: list[list[int]], params: PoolingParams, chunk: int) -> list[np.ndarray]:
        done, vectors = [0] * len(prompts), {}
        starts = [new_seq(row, prompt, params) for row, prompt in enumerate(prompts)]
        while len(vectors) < len(prompts):
            seqs = []  # row, start, n, samples, write, pools
            for row, prompt in enumerate(prompts):
                n = min(chunk + row, len(prompt) - done[row])
                if n > 0:
                    seqs.append((row, done[row], n, False, True, done[row] + n == len(prompt)))
                    done[row] += n
            result = self.step(seqs, starts=starts)
            starts = []
            assert result.tokens == [[]] * len(seqs)
            assert set(result.pooled) == {i for i, seq in enumerate(seqs) if seq[-1]}
            vectors |= {seqs[i][0]: np.frombuffer(v, "<f4") for i, v in result.pooled.items()}
        return [vectors[row] for row in range(len(prompts))]


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
        bench = PoolingBench(model, dtype=torch.float32, num_blocks=100)
        for mine, hidden in zip(bench.embed(PROMPTS, params, 11), states):
            torch.testing.assert_close(torch.tensor(mine), expected(hidden, params), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("params", [PoolingParams(), PoolingParams(pooling="last", normalize=False, dimensions=5)])
def test_on_invariant_ops_chunks_and_neighbours_leave_no_trace(params, dtype, tmp_path: Path) -> None:
    model = load(save(hf_model("llama3"), tmp_path), ops=invariant, dtype=dtype)

    def embed(prompts, chunk):
        return PoolingBench(model, dtype=getattr(torch, dtype), num_blocks=100).embed(prompts, params, chunk)

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


def test_a_row_that_pooled_samples_again_and_the_other_way_round() -> None:
    """Rows are reused: nothing of an embedding stays, nor the prompt log-probabilities of who was there before."""
    asked, last = SamplingParams(temperature=0, prompt_logprobs=0), PoolingParams(pooling="last", normalize=False)
    bench = PoolingBench()
    (first,) = bench.start(0, [1, 2, 3], asked)
    assert first.prompt_logprobs and not first.pooled
    prompt = [4, 5, 6, 7, 8, 9, 10]
    begun = bench.step([(0, 0, 4, False)], ends=[0], starts=[new_seq(0, prompt, last)])
    ended = bench.step([(0, 4, 3, False, True, True)])
    assert begun.pooled == begun.prompt_logprobs == ended.prompt_logprobs == {}
    assert np.frombuffer(ended.pooled[0], "<f4") == np.float32(hash_of(prompt))
    (again,) = bench.start(0, [1, 2, 3], asked, ends=[0])
    assert again.tokens == first.tokens and again.prompt_logprobs == first.prompt_logprobs and not again.pooled


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
