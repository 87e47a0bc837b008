"""Shadow verification of the plane for CPUs, packed weights and all: each step of a busy engine agrees."""

from __future__ import annotations

import pytest

from quire import LLM, SamplingParams
from quire.fast import cpu


@pytest.mark.parametrize(
    "settings", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "batch_invariant": True}], ids=str
)
def test_every_step_agrees_with_the_reference(tmp_path, settings) -> None:
    llm = LLM(
        "pocket", device="cpu", num_blocks=20, max_num_seqs=16, max_num_batched_tokens=90, max_model_len=256, verify=1,
        preemption_mode="swap", verify_dir=str(tmp_path), **settings,
    )  # fmt: skip
    ops = llm.engine.runner.runner.model.ops
    assert ops is (cpu.invariant if "batch_invariant" in settings else cpu)
    prompts = [
        f"Please tell me a bedtime story about a fox, a hawk, a river, the old wood and the {i}." for i in range(9)
    ]
    params = [
        SamplingParams(max_tokens=10 + i, temperature=i % 4 / 3, top_p=1 - i % 3 / 10, seed=i, presence_penalty=i / 9,
                       n=1 + i % 3, ignore_eos=True)
        for i in range(len(prompts))
    ]  # fmt: skip
    llm.generate(prompts, params, use_tqdm=False)
    llm.embed(prompts[:3], use_tqdm=False)
    stats = llm.stats()
    assert stats.steps_verified == sum(stats.steps_by_tokens) > 20 and stats.steps_diverged == 0
    assert stats.num_swapped_in and stats.num_copies and stats.prefix_hits
