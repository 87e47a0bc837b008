"""The embedded model on the fast plane for CPUs: DESIGN §2's promises, and the reference's answers.

The same tests as ``tests/reference/test_metamorphic.py``, bit by bit with ``batch_invariant=True``; and without it the
reference plane's tokens, up to near-ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quire import LLM
from quire.fast import cpu
from quire.reference import ops as reference_ops
from quire.reference.models import load_model
from tests.fast.test_metamorphic import TOLERANCE, share_compared
from tests.reference.test_metamorphic import (  # noqa: F401
    ENGINES,
    MAX_LEN,
    WORKLOAD,
    alone,
    answer,
    prompts,
    roomy,
    test_any_mixture_with_aborts_and_bad_requests,
    test_bit_by_bit_the_same,
    test_bit_by_bit_the_same_in_another_order_on_a_warm_cache,
)


@pytest.fixture(scope="module", params=TOLERANCE)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(dtype: str) -> Callable[..., LLM]:
    defaults = {"dtype": dtype, "device": "cpu", "backend": "fast", "num_blocks": 400, "max_model_len": MAX_LEN}
    return lambda **settings: LLM("pocket", **defaults | {"batch_invariant": True} | settings)


@pytest.fixture(scope="module")
def truth(engine: Callable[..., LLM], prompts: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """The reference plane's answers in the same dtype."""
    return answer(engine(backend="reference", batch_invariant=False), prompts, list(WORKLOAD))


@pytest.fixture(scope="module")
def model(roomy: LLM) -> Any:  # noqa: F811
    """What decides whether two tokens were close."""
    return load_model(roomy.assets.path, dtype="float32", device="cpu", ops=reference_ops)


@pytest.mark.parametrize("name", ["neighbours", "chunks of 50", "recompute", "swap", "run-ahead"])
def test_tokens_are_those_of_the_reference(engine, dtype, truth, model, prompts, name) -> None:  # noqa: F811
    llm = engine(**ENGINES[name] | {"batch_invariant": False})
    assert llm.engine.runner.model.ops is cpu
    assert llm.engine.config.async_scheduling is (name == "run-ahead")
    got = answer(llm, prompts, list(WORKLOAD))
    enough = 0.9 if dtype == "float32" else 0.4
    assert share_compared(got, truth, model, prompts, TOLERANCE[dtype]) > enough, "the tolerance hides everything"


def test_every_step_passes_verification(engine, prompts, tmp_path) -> None:  # noqa: F811
    llm = engine(verify=1, verify_dir=str(tmp_path), **ENGINES["recompute"])
    answer(llm, prompts, list(WORKLOAD)[:5])
    assert llm.stats().steps_verified > 20 and llm.stats().steps_diverged == 0
