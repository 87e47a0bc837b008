"""The fast runner under the engine: everything a scheduler does to it leaves every answer as it is.

The model here is the suite's ``MemoryModel``. Its logits are the same numbers on every device and depend on what was
read from the paged cache, so the answers have to be exactly those of the reference runner with the request alone in a
roomy engine, log-probabilities included. What float rounding does to a real model is ``test_metamorphic.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from quire import BeamSearchParams, PoolingParams, SamplingParams, StructuredOutputsParams
from quire.fast.runner import ModelRunner
from quire.reference.config import EngineConfig
from quire.reference.control.params import RequestParams
from quire.reference.control.scheduler import Scheduler
from quire.reference.engine import Engine, ModelFacts
from quire.reference.runner import ModelRunner as ReferenceRunner
from tests.fast.drawn import COMPILED, DEVICE
from tests.runner_suite import MemoryModel
from tests.toys import byte_tokenizer

VOCAB, MAX_LEN = 384, 48
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]  # fills two blocks: found in the cache it is computed without being written
SAMPLED = partial(SamplingParams, temperature=0.8, seed=7, max_tokens=9, logprobs=1)
COLOURS = StructuredOutputsParams(choice=["red", "green", "blue or nearly so"])

REQUESTS: dict[str, tuple[list[int], RequestParams]] = {
    "greedy": (PROMPT, SamplingParams(temperature=0, max_tokens=12, logprobs=2, prompt_logprobs=1)),
    "the same prompt": (PROMPT, SAMPLED()),
    "one token more": ([*PROMPT, 1], SAMPLED(prompt_logprobs=0)),
    "long": (list(range(30)), SAMPLED(seed=8)),
    "n=3": ([3] * 6, SAMPLED(n=3)),
    "best of 3": (PROMPT, SAMPLED(best_of=3)),
    "stops soon": ([4, 2], SAMPLED(n=2, stop_token_ids=list(range(80)), max_tokens=20)),
    "rules": ([9, 9, 1], SAMPLED(min_tokens=6, stop_token_ids=list(range(99)), logit_bias={7: 4.0, 300: -9.0})),
    "bad words": ([1], SAMPLED(bad_words_token_ids=[[30], [40, 41]], allowed_token_ids=[30, 40, 41, 42], max_tokens=6)),
    "penalties": ([2, 2, 3], SAMPLED(presence_penalty=1, frequency_penalty=0.5, repetition_penalty=1.3, max_tokens=5)),
    "truncated": ([8, 1], SAMPLED(top_p=0.9, top_k=50, max_tokens=3)),
    "grammar": ([1, 1], SAMPLED(structured_outputs=COLOURS, n=2, temperature=2.0, max_tokens=20)),
    "beams": ([6, 5, 4, 3, 2], BeamSearchParams(beam_width=3, max_tokens=6)),
    "embedding": (list(range(20)), PoolingParams(normalize=False)),
}


def engine(make_runner: Callable[..., Any], **settings: Any) -> Engine:
    """An engine around a runner, with small blocks that are full of NaN."""
    defaults = {"block_size": 4, "num_blocks": 200, "max_num_seqs": 24, "max_model_len": MAX_LEN}
    config = EngineConfig(**defaults | settings)
    num_host_blocks = 40 if config.preemption_mode == "swap" else 0
    runner = make_runner(
        MemoryModel(VOCAB), max_num_seqs=config.max_num_seqs, max_model_len=MAX_LEN, block_size=config.block_size,
        device=DEVICE, dtype=torch.float64,
    )  # fmt: skip
    runner.allocate_kv(config.num_blocks, num_host_blocks)
    for cache in (cache for pair in runner.caches for cache in pair):
        cache.fill_(torch.nan)
    if COMPILED:
        torch.cuda.synchronize()  # the runner has a stream of its own
    scheduler = Scheduler(
        config.scheduler(max_model_len=MAX_LEN, num_blocks=config.num_blocks, num_host_blocks=num_host_blocks)
    )
    facts = ModelFacts(
        name="memory", vocab_size=VOCAB, max_model_len=MAX_LEN, embedding_size=1, eos_token_ids=(0,)
    )  # fmt: skip
    return Engine(config, facts, scheduler, runner, tokenizer=byte_tokenizer)


def answers(engine: Engine, names: list[str]) -> dict[str, Any]:
    """What each request is given: tokens and log-probabilities of each completion, and why it ended."""
    for name in names:
        engine.add_request(*REQUESTS[name], request_id=name)
    got: dict[str, Any] = {name: {} for name in names}
    while engine.has_unfinished():
        for event in engine.step():
            one = got[event.request_id].setdefault(event.index, {"tokens": [], "logprobs": []})
            one["tokens"] += event.token_ids
            one["logprobs"] += event.logprobs or []
            for field in ("prompt_logprobs", "finish_reason", "stop_reason", "beams", "embedding", "error"):
                if getattr(event, field) is not None:
                    one[field] = getattr(event, field)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.blocks_used, stats.host_blocks_used) == (0, 0, 0, 0)
    return got


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The truth: each request by itself, on the reference runner."""
    return {name: answers(engine(ReferenceRunner), [name])[name] for name in REQUESTS}


def test_the_requests_do_what_they_are_there_for(alone: dict[str, Any]) -> None:
    reasons = {name: [c.get("finish_reason") for c in one.values()] for name, one in alone.items()}
    assert reasons["stops soon"] == ["stop", "stop"] and reasons["greedy"] == ["length"]
    assert len({tuple(c["tokens"]) for c in alone["n=3"].values()}) == 3
    assert len(alone["rules"][0]["tokens"]) >= 6
    assert reasons["grammar"] == ["stop", "stop"] and len(alone["beams"][0]["beams"]) == 3
    assert not any(VOCAB - 1 in c["tokens"] for one in alone.values() for c in one.values()), "a foreign cell"


TIGHT = {"num_blocks": 14, "max_num_seqs": 8}
ENGINES: dict[str, dict[str, Any]] = {
    "run-ahead": {"async_scheduling": True},
    "waiting for each step, chunks of 5": {"async_scheduling": False, "max_num_batched_tokens": 5, "max_num_seqs": 4},
    "recompute": TIGHT | {"async_scheduling": True, "max_num_batched_tokens": 16},
    "swap": TIGHT | {"async_scheduling": True, "preemption_mode": "swap", "max_num_batched_tokens": 24},
}


@pytest.mark.parametrize("graphs", [True, False] if COMPILED else [False])
@pytest.mark.parametrize("name", ENGINES)
def test_neighbours_chunks_preemption_and_run_ahead_change_nothing(
    name: str, graphs: bool, alone: dict[str, Any]
) -> None:
    own = engine(partial(ModelRunner, enforce_eager=not graphs), **ENGINES[name])
    slow = () if COMPILED or name == "recompute" else ("penalties", "truncated")  # to interpret
    names = [n for n in REQUESTS if n not in slow]
    assert answers(own, names[::-1] if "swap" in name else names) == {n: alone[n] for n in names}
    stats = own.stats()
    if "num_blocks" in ENGINES[name]:
        assert stats.num_preemptions > 0
    if "swap" in name:
        assert stats.num_swapped_out > 0 and stats.num_swapped_in > 0
    if name == "recompute":
        assert stats.prefix_hits > 0
