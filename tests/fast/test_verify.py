"""Shadow verification of the fast plane: its runner and its kernels against the reference, step by step.

The embedded model's shape is too much for Triton's interpreter; a tiny model and a few steps are not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from quire import LLM, SamplingParams, backend
from quire.fast.runner import runner as runner_module
from quire.verify.replay import read, replay
from tests.fast.drawn import COMPILED, DEVICE
from tests.fast.replays import Replays
from tests.toys import tiny_checkpoint

REQUESTS: list[tuple[list[int], SamplingParams]] = [
    ([5, 6, 7, 8, 9, 10], SamplingParams(temperature=0.9, top_p=0.9, top_k=40, max_tokens=3, seed=7, n=2)),
    ([9, 10], SamplingParams(max_tokens=3, presence_penalty=0.7, seed=3, ignore_eos=True, min_tokens=2, logprobs=1)),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), num_hidden_layers=1)


def work(checkpoint: Path, folder: Path, monkeypatch, requests=REQUESTS, **settings) -> LLM:
    """An engine on the fast plane that has verified each of its steps."""
    monkeypatch.setattr(backend, "choose", lambda config, device: "fast")  # also where its kernels are interpreted
    llm = LLM(
        str(checkpoint), device=DEVICE, dtype="float32", block_size=16, num_blocks=40, max_model_len=64,
        max_num_seqs=5, max_num_batched_tokens=32, verify=1, verify_dir=str(folder), **settings,
    )  # fmt: skip
    if not COMPILED:
        llm.engine.runner.runner._graphs = Replays()
    llm.generate([{"prompt_token_ids": ids} for ids, _ in requests], [p for _, p in requests], use_tqdm=False)
    return llm


LOOKUP = {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 2, "adaptive": False}
SETTINGS = {"": {}, "batch_invariant": {"batch_invariant": True}, "drafts": {"speculative_config": LOOKUP}}
DRAFTS = {"speculative_config": {"model": "pocket-draft", "adaptive": False}}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_step_agrees_with_the_reference(checkpoint, tmp_path, monkeypatch, settings) -> None:
    llm = work(checkpoint, tmp_path, monkeypatch, **settings)
    stats = llm.stats()
    assert stats.steps_verified == sum(stats.steps_by_tokens) >= 4 and stats.steps_diverged == 0
    assert stats.num_copies > 0


@pytest.mark.skipif(not COMPILED, reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"enforce_eager": True}, {"batch_invariant": True}, DRAFTS], ids=str)
def test_the_embedded_model_under_load(tmp_path, dtype, settings) -> None:
    """Graphs of many sizes, run-ahead, chunks, preemption and swapping, forks, embeddings; each step is verified."""
    llm = LLM(
        "pocket", dtype=dtype, num_blocks=70, max_num_seqs=40, max_num_batched_tokens=100, max_model_len=512, verify=1,
        preemption_mode="swap", verify_dir=str(tmp_path), **settings,
    )  # fmt: skip
    prompts = [
        f"Please tell me a bedtime story about a fox, a hawk, a river, the old forest and the number {i}."
        for i in range(40)
    ]
    params = [
        SamplingParams(max_tokens=10 + i, temperature=(i % 4) / 3, top_p=1 - (i % 3) / 10, top_k=(i % 2) * 30, seed=i,
                       presence_penalty=(i % 5) / 5, n=1 + i % 3, ignore_eos=True, logprobs=1 if i % 7 == 0 else None)
        for i in range(len(prompts))
    ]  # fmt: skip
    llm.generate(prompts, params, use_tqdm=False)
    llm.embed(prompts[:20], use_tqdm=False)
    stats = llm.stats()
    assert stats.steps_verified == sum(stats.steps_by_tokens) > 100 and stats.steps_diverged == 0
    assert stats.num_swapped_in and stats.num_copies and stats.prefix_hits


def test_a_sampler_that_is_off_is_found_and_replayed(checkpoint, tmp_path, monkeypatch) -> None:
    right = runner_module.choose

    def next_token(scores, *args, **kwargs):
        return right(scores.roll(1, 1), *args, **kwargs)

    monkeypatch.setattr(runner_module, "choose", next_token)
    llm = work(checkpoint, tmp_path, monkeypatch, REQUESTS[1:])
    assert llm.stats().steps_diverged > 0
    recording = read(min(tmp_path.iterdir()))
    assert {d["what"] for d in recording.about["differences"]} == {"sample"}
    runs = replay(recording)
    assert len(runs) == (3 if COMPILED else 1)  # kernel by kernel, captured, replayed
    for run in runs:
        assert [d.what for d in run.differences] == ["sample"] * len(recording.about["differences"])
