"""A model on the invariant ops: logits and K/V are bitwise the same however a sequence was computed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from quire.reference.ops import invariant
from tests.reference.models.driver import VOCAB, Paged, hf_model, load, save


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-linear-biases", "mistral-window", "qwen3", "gpt2", "opt-norm-after-narrow"])
def test_chunks_neighbours_and_blocks_do_not_matter(name: str, dtype: str, tmp_path: Path) -> None:
    model = load(save(hf_model(name), tmp_path), ops=invariant, dtype=dtype)
    rng = random.Random(name)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (40, 3, 90, 17)]
    alone = [Paged(model, block_size=16, seed=i).step([(i, p)])[0] for i, p in enumerate(prompts)]
    paged, done = Paged(model, block_size=5), [0] * len(prompts)
    while any(done[i] < len(p) for i, p in enumerate(prompts)):
        active = [i for i in range(len(prompts)) if done[i] < len(prompts[i])]
        work = [(i, prompts[i][done[i] : done[i] + rng.choice([1, 1, 4, 30])]) for i in rng.sample(active, len(active))]
        for (i, tokens), logits in zip(work, paged.step(work)):
            assert torch.equal(logits, alone[i][done[i] : done[i] + len(tokens)])
            done[i] += len(tokens)
