"""The fast runner keeps what every runner promises (``tests.runner_suite``): with graphs, without, and interpreted."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import quire.fast.ops
from quire.fast.runner import ModelRunner
from tests.fast.drawn import COMPILED, DEVICE
from tests.runner_suite import *  # noqa: F403
from tests.runner_suite import Bench


@pytest.fixture(scope="module", params=["eager", "graphs"] if COMPILED else ["eager"])
def new_bench(request: pytest.FixtureRequest) -> Any:
    return partial(Bench, partial(ModelRunner, enforce_eager=request.param == "eager"), device=DEVICE)


@pytest.fixture(scope="module")
def ops() -> Any:
    return quire.fast.ops
