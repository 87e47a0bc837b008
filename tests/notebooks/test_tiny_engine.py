"""The engine in 150 lines writes what the real one writes, also when it has to share, to chunk and to preempt."""

from __future__ import annotations

import pytest

from quire import LLM, SamplingParams
from tests.conftest import ROOT
from tests.notebooks.test_notebooks import FOLDER, code_lines, load

tiny = load("tiny_engine")
QUESTIONS = (
    "What is 417 + 268?",
    "What is a block table?",
    "Sort: pear, fig, apple",
    "Tell me a story about a fox.",
    "Tell me a story about a fox and a hawk.",
    "Reverse: hill, garden, zebra",
)
TEMPERATURES = (0, 0, 0, 0.8, 1.2, 0.5)


@pytest.fixture(scope="module")
def wanted() -> list[tuple[list[int], list[int]]]:
    """Prompts, and what the real engine answers."""
    llm = LLM("pocket", backend="reference")
    prompts = [llm.render_chat([{"role": "user", "content": q}])["prompt_token_ids"] for q in QUESTIONS]
    params = [SamplingParams(temperature=t, seed=i, max_tokens=40) for i, t in enumerate(TEMPERATURES)]
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [(prompt, output.outputs[0].token_ids) for prompt, output in zip(prompts, outputs)]


@pytest.mark.parametrize(
    ("sizes", "preempts"),
    [
        ({}, False),
        ({"budget": 7}, False),
        ({"block_size": 4, "num_blocks": 20}, True),
        ({"num_blocks": 6, "budget": 9}, True),
    ],
)
def test_tokens_equal_those_of_the_real_engine(wanted, sizes: dict[str, int], preempts: bool) -> None:
    engine = tiny.TinyEngine(ROOT / "zoo" / "pocket", **sizes)
    for _ in range(2):  # the second time prompts are found in the cache
        sequences = [
            engine.add(prompt, 40, temperature=t, seed=i)
            for i, ((prompt, _), t) in enumerate(zip(wanted, TEMPERATURES))
        ]
        engine.run()
        assert [seq.output for seq in sequences] == [tokens for _, tokens in wanted]
        assert len(engine.free) == engine.num_blocks and not any(engine.refs)  # everything has been given back
    assert bool(engine.preempted) == preempts
    assert engine.hits > 0


def test_it_is_150_lines() -> None:
    assert code_lines((FOLDER / "tiny_engine.py").read_text("utf-8")) <= 150
