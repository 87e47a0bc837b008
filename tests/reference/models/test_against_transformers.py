"""Every architecture against Hugging Face transformers, on tiny random weights: logits, and greedy tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from quire.reference import ops
from quire.reference.ops import invariant
from tests.reference.models.driver import CONFIGS, VOCAB, Paged, hf_model, load, save


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_ragged_chunked_prefill(name: str, tmp_path: Path) -> None:
    hf = hf_model(name)
    model = load(save(hf, tmp_path))
    assert model.config.num_parameters == hf.num_parameters()
    rng = random.Random(name)
    prompts = [[rng.randrange(3, VOCAB) for _ in range(n)] for n in (1, 5, 30, 61, 100)]
    with torch.inference_mode():
        expected = [hf(torch.tensor([p])).logits[0] for p in prompts]
    paged = Paged(model)
    got: list[list[torch.Tensor]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    while any(done[i] < len(p) for i, p in enumerate(prompts)):  # some sequences idle, others take 1 .. 40 tokens
        work = []
        for i, prompt in enumerate(prompts):
            if done[i] < len(prompt) and rng.random() < 0.7:
                n = min(rng.choice([1, 2, 7, 40]), len(prompt) - done[i])
                work.append((i, prompt[done[i] : done[i] + n]))
                done[i] += n
        rng.shuffle(work)
        for (i, _), logits in zip(work, paged.step(work) if work else []):
            got[i].append(logits)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(torch.cat(mine), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_nobody_asks_for_leave_their_keys_and_values(name: str, tmp_path: Path) -> None:
    model = load(save(hf_model(name), tmp_path))
    everything, last = Paged(model), Paged(model)
    for work in ([(0, [7, 8, 9, 4]), (1, [5])], [(0, [11]), (1, [3] * 6)], [(0, [12]), (1, [13])]):
        expected = [logits[-1:] for logits in everything.step(work)]
        torch.testing.assert_close(last.step(work, last_only=True), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name: str, tmp_path: Path) -> None:
    hf = hf_model(name)
    model = load(save(hf, tmp_path), ops=invariant if name in ("llama3", "gpt2") else ops)
    prompts = [[5, 17, 80, 31], [44] * 9]
    paged = Paged(model, seed=1)
    step = [(i, p) for i, p in enumerate(prompts)]
    mine: list[list[int]] = [[], []]
    for _ in range(64):
        step = [(i, [int(logits[-1].argmax())]) for (i, _), logits in zip(step, paged.step(step))]
        for i, token in step:
            mine[i] += token
    for prompt, tokens in zip(prompts, mine):
        theirs = hf.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert tokens == theirs[0, len(prompt) :].tolist()
