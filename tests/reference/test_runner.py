"""The reference runner keeps what every runner promises (``tests.runner_suite``), and refuses what no plan may ask."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import quire.reference.ops
from quire.reference.control.plan import SeqPlan
from quire.reference.runner import ModelRunner
from tests.runner_suite import *  # noqa: F403
from tests.runner_suite import Bench


@pytest.fixture(scope="module", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def new_bench(request: pytest.FixtureRequest) -> Any:
    return partial(Bench, ModelRunner, device=request.param)


@pytest.fixture(scope="module")
def ops() -> Any:
    return quire.reference.ops


def test_what_a_plan_may_not_ask(new_bench: Any) -> None:
    bench = new_bench()
    bench.start(0, [1, 2, 3])
    bench.decode(0, 1)
    with pytest.raises(AssertionError, match="lack blocks"):
        bench.step([SeqPlan(0, 0, 0, 4, 1, 0, [], True)])
    with pytest.raises(AssertionError, match="tokens that the rows do not have"):
        bench.step([(0, 4, 2)])
