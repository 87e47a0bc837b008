"""Speculation on the fast plane for CPUs: the same tests as on the reference, bit by bit, and the draft model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quire import LLM
from tests.reference.test_metamorphic import MAX_LEN, WORKLOAD, alone, answer, prompts, roomy  # noqa: F401
from tests.reference.test_speculation import test_the_workload_is_answered_the_same  # noqa: F401


@pytest.fixture(scope="module")
def engine() -> Callable[..., LLM]:
    defaults = {"dtype": "float32", "device": "cpu", "backend": "fast", "num_blocks": 400, "max_model_len": MAX_LEN}
    return lambda **settings: LLM("pocket", **defaults | {"batch_invariant": True} | settings)


def test_the_draft_model_of_the_zoo_agrees_with_its_target(engine, alone, prompts):  # noqa: F811
    llm = engine(speculative_config={"model": "pocket-draft", "adaptive": False})
    assert answer(llm, prompts, list(WORKLOAD)) == alone
    assert llm.stats().mean_acceptance_length > 2.5
