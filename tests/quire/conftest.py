"""One tiny checkpoint for all tests of the face, and an engine on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire import LLM
from tests.toys import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint) -> LLM:
    """Small enough for requests to meet in a step, to be chunked, and for blocks to be shared."""
    return LLM(
        str(checkpoint), num_blocks=200, block_size=4, max_model_len=512, max_num_seqs=16, max_num_batched_tokens=64
    )


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """After each test that used the shared engine no request is left in it."""
    yield
    if "llm" in request.fixturenames:
        llm = request.getfixturevalue("llm")
        assert not llm.engine.scheduler.has_unfinished() and not llm._boxes
        assert llm.stats().num_running == llm.stats().num_waiting == 0
