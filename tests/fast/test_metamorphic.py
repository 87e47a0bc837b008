"""The embedded model on the fast plane, compiled: DESIGN §2's promises, and the reference's answers.

The same tests as ``tests/reference/test_metamorphic.py``, which hold each engine against the fast plane alone, bit by
bit with ``batch_invariant=True``. And without it: the reference plane's tokens on the same GPU, up to near-ties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quire import LLM, BeamSearchParams, PoolingParams, SamplingParams
from quire.reference import ops as reference_ops
from quire.reference.models import load_model
from tests.fast.drawn import COMPILED, GRAMMARS
from tests.fast.ties import agreement
from tests.reference.test_metamorphic import (  # noqa: F401
    ENGINES,
    MAX_LEN,
    WORKLOAD,
    alone,
    answer,
    prompts,
    roomy,
    seeded,
    test_a_stream_says_what_generate_says,
    test_any_mixture_with_aborts_and_bad_requests,
    test_bit_by_bit_the_same,
    test_bit_by_bit_the_same_in_another_order_on_a_warm_cache,
    test_priorities_decide_when_and_not_what,
    test_seeds_of_the_engine_depend_on_the_order_of_arrival_only,
)

pytestmark = pytest.mark.skipif(not COMPILED, reason="needs a GPU: to interpret this takes hours")

if COMPILED and not GRAMMARS:
    for name in [name for name, (_, _, params) in WORKLOAD.items() if getattr(params, "structured_outputs", None)]:
        del WORKLOAD[name]

# Of log-probabilities (float32: sums in another order; bfloat16: 8 bits, rounded in other places).
TOLERANCE = {"float32": 5e-4, "bfloat16": 0.5}


@pytest.fixture(scope="module", params=TOLERANCE)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(dtype: str) -> Callable[..., LLM]:
    defaults = {"dtype": dtype, "device": "cuda", "backend": "fast", "num_blocks": 400, "max_model_len": MAX_LEN}
    return lambda **settings: LLM("pocket", **defaults | {"batch_invariant": True} | settings)


@pytest.fixture(scope="module")
def truth(engine: Callable[..., LLM], prompts: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """The reference plane's answers on the same device and in the same dtype."""
    return answer(engine(backend="reference", batch_invariant=False), prompts, list(WORKLOAD))


@pytest.fixture(scope="module")
def model(roomy: LLM) -> Any:  # noqa: F811
    """What decides whether two tokens were close."""
    return load_model(roomy.assets.path, dtype="float32", device="cpu", ops=reference_ops)


def test_without_graphs_bit_by_bit_the_same(engine, alone, prompts) -> None:  # noqa: F811
    assert answer(engine(enforce_eager=True), prompts, list(WORKLOAD)) == alone


DRAFTERS = {
    "draft model": {"model": "pocket-draft", "num_speculative_tokens": 5, "adaptive": False},
    "draft model, adaptive": {"model": "pocket-draft", "num_speculative_tokens": 7},
    "prompt lookup": {"method": "ngram", "prompt_lookup_min": 1, "num_speculative_tokens": 9, "adaptive": False},
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", ["neighbours", "chunks of 50", "recompute", "swap"])
def test_with_drafts_bit_by_bit_the_same(engine, alone, prompts, name, drafter) -> None:  # noqa: F811
    llm = engine(**ENGINES[name], async_scheduling=True, speculative_config=DRAFTERS[drafter])
    assert answer(llm, prompts, list(WORKLOAD)) == alone
    assert llm.stats().num_accepted_tokens > 10


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", ["neighbours", "chunks of 50", "recompute", "swap"])
def test_tokens_are_those_of_the_reference(engine, dtype, truth, model, prompts, name, ahead, eager) -> None:  # noqa: F811
    settings = {"batch_invariant": False, "async_scheduling": ahead, "enforce_eager": eager}
    got = answer(engine(**ENGINES[name] | settings), prompts, list(WORKLOAD))
    enough = 0.9 if dtype == "float32" else 0.4
    assert share_compared(got, truth, model, prompts, TOLERANCE[dtype]) > enough, "the tolerance hides everything"


def share_compared(got: Any, truth: Any, model: Any, prompts: Any, tolerance: float) -> float:  # noqa: F811
    """Compare two planes' answers to WORKLOAD; -> which share of the tokens comes before the first near-ties."""
    compared, total = 0, 0
    for request in WORKLOAD:
        params, prompt = seeded(request), prompts[request]["prompt_token_ids"]
        completions, more = truth[request]
        if isinstance(params, PoolingParams):
            ours, theirs = (np.frombuffer(x, "<f4") for x in (got[request][1], more))
            assert ours == pytest.approx(theirs, abs=tolerance, rel=tolerance)
        elif isinstance(params, BeamSearchParams):  # other beams if they are as good
            assert [c[3] for c in got[request][0]] == pytest.approx([c[3] for c in completions], abs=10 * tolerance)
        elif isinstance(params, SamplingParams) and params.best_of is None:  # best_of would sort near-ties in its way
            for one, other in zip(completions, got[request][0], strict=True):
                same = agreement(model, params, prompt, one[0], one[2], other[2], tolerance / (params.temperature or 1))
                for a, b, token in zip((one[4] or [])[:same], other[4] or [], one[2]):
                    assert a[token].logprob == pytest.approx(b[token].logprob, abs=tolerance, rel=tolerance / 10)
                compared, total = compared + same, total + len(one[2])
    return compared / total
