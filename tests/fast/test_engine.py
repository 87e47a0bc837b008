"""The fast runner under the engine: everything a scheduler does to it leaves every answer as it is.

The model is mostly the suite's ``MemoryModel``. Its logits are the same numbers on every device and depend on what was
read from the paged cache, so the answers have to be exactly those of the reference runner with the request alone in a
roomy engine, log-probabilities included. A real model, a tiny one here, agrees up to near-ties (DESIGN §2); the one
that ships with quire is ``test_metamorphic.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from quire import BeamSearchParams, PoolingParams, SamplingParams, StructuredOutputsParams
from quire.backend import build_engine
from quire.fast.runner import ModelRunner
from quire.fast.runner.draft_model import DraftModel
from quire.reference import ops as reference_ops
from quire.reference.config import EngineConfig
from quire.reference.control.params import RequestParams
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.speculation import DraftPolicy
from quire.reference.engine import Engine, ModelFacts
from quire.reference.models import load_model
from quire.reference.runner import ModelRunner as ReferenceRunner
from tests.fast.drawn import COMPILED, DEVICE, GRAMMARS
from tests.fast.replays import Replays
from tests.fast.ties import agreement
from tests.reference.models.driver import save
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

SLOW = ("penalties", "truncated")  # to interpret
if not GRAMMARS:
    del REQUESTS["grammar"]


def engine(make_runner: Callable[..., Any], policy: DraftPolicy | None = None, **changes: Any) -> Engine:
    """An engine around a runner, with small blocks that are full of NaN. ``policy``: of speculation."""
    defaults = {"block_size": 4, "num_blocks": 200, "max_num_seqs": 24, "max_model_len": MAX_LEN}
    config = EngineConfig(**defaults | changes)
    num_host_blocks = 40 if config.preemption_mode == "swap" else 0
    runner = make_runner(
        MemoryModel(VOCAB), max_num_seqs=config.max_num_seqs, max_model_len=MAX_LEN, block_size=config.block_size,
        device=DEVICE, dtype=torch.float64,
    )  # fmt: skip
    if not COMPILED and isinstance(runner, ModelRunner):
        runner._graphs = Replays()
        if isinstance(runner.proposer, DraftModel):
            runner.proposer._graphs = runner._graphs
    runner.allocate_kv(config.num_blocks, num_host_blocks)
    drafts = getattr(getattr(runner, "proposer", None), "caches", [])
    for cache in (cache for pair in [*runner.caches, *drafts] for cache in pair):
        cache.fill_(torch.nan)
    if COMPILED:
        torch.cuda.synchronize()  # the runner has a stream of its own
    scheduler = Scheduler(
        config.scheduler(
            max_model_len=MAX_LEN,
            num_blocks=config.num_blocks,
            num_host_blocks=num_host_blocks,
            speculation=policy,
        )
    )
    facts = ModelFacts(
        name="memory", vocab_size=VOCAB, max_model_len=MAX_LEN, embedding_size=1, eos_token_ids=(0,)
    )  # fmt: skip
    return Engine(config, facts, scheduler, runner, tokenizer=byte_tokenizer)


def answers(engine: Engine, names: list[str], aborted: dict[str, int] | None = None) -> dict[str, Any]:
    """What each request is given: tokens and log-probabilities of each completion, and why it ended.

    ``aborted``: further requests, and after how many steps each is given up.
    """
    aborted = aborted or {}
    for name in [*aborted, *names]:
        engine.add_request(*REQUESTS[name], request_id=name)
    got: dict[str, Any] = {name: {} for name in [*aborted, *names]}
    for step in count():
        if not engine.has_unfinished():
            break
        for name in [name for name, last in aborted.items() if last == step]:
            engine.abort_request(name)
        for event in engine.step():
            one = got[event.request_id].setdefault(event.index, {"tokens": [], "logprobs": []})
            one["tokens"] += event.token_ids
            one["logprobs"] += event.logprobs or []
            for field in ("prompt_logprobs", "finish_reason", "stop_reason", "beams", "embedding", "error"):
                if getattr(event, field) is not None:
                    one[field] = getattr(event, field)
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.blocks_used, stats.host_blocks_used) == (0, 0, 0, 0)
    return {name: got[name] for name in names}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The truth: each request by itself, on the reference runner."""
    return {name: answers(engine(ReferenceRunner), [name])[name] for name in REQUESTS}


def test_the_requests_do_what_they_are_there_for(alone: dict[str, Any]) -> None:
    reasons = {name: [c.get("finish_reason") for c in one.values()] for name, one in alone.items()}
    assert reasons["stops soon"] == ["stop", "stop"] and reasons["greedy"] == ["length"]
    assert len({tuple(c["tokens"]) for c in alone["n=3"].values()}) == 3
    assert len(alone["rules"][0]["tokens"]) >= 6
    assert reasons.get("grammar") in (["stop", "stop"], None) and len(alone["beams"][0]["beams"]) == 3
    assert not any(VOCAB - 1 in c["tokens"] for one in alone.values() for c in one.values()), "a foreign cell"


TIGHT = {"num_blocks": 14, "max_num_seqs": 8}
ENGINES: dict[str, dict[str, Any]] = {
    "run-ahead": {"async_scheduling": True},
    "waiting for each step, chunks of 5": {"async_scheduling": False, "max_num_batched_tokens": 5, "max_num_seqs": 4},
    "recompute": TIGHT | {"async_scheduling": True, "max_num_batched_tokens": 16},
    "swap": TIGHT | {"async_scheduling": True, "preemption_mode": "swap", "max_num_batched_tokens": 24},
}


@pytest.mark.parametrize("graphs", [True, False] if COMPILED else [True])
@pytest.mark.parametrize("name", ENGINES)
def test_neighbours_chunks_preemption_and_run_ahead_change_nothing(
    name: str, graphs: bool, alone: dict[str, Any]
) -> None:
    own = engine(partial(ModelRunner, enforce_eager=not graphs), **ENGINES[name])
    names = [n for n in REQUESTS if COMPILED or name == "recompute" or n not in SLOW]
    assert answers(own, names[::-1] if "swap" in name else names) == {n: alone[n] for n in names}
    stats = own.stats()
    if "num_blocks" in ENGINES[name]:
        assert stats.num_preemptions > 0
    if "swap" in name:
        assert stats.num_swapped_out > 0 and stats.num_swapped_in > 0
    if name == "recompute":
        assert stats.prefix_hits > 0
    assert COMPILED or own.runner._graphs.replayed > 2


@st.composite
def mixtures(draw: st.DrawFn, names: list[str]) -> tuple[dict[str, Any], list[str], dict[str, int]]:
    """Settings of an engine; requests for it, by name; others, and after how many steps each of them is given up."""
    block_size = draw(st.sampled_from([4, 8, 16]))
    config = {
        "block_size": block_size,
        "num_blocks": MAX_LEN // block_size + 1 + draw(st.sampled_from([0, 3, 60])),
        "max_num_batched_tokens": draw(st.integers(5, 90)),
        "max_num_seqs": draw(st.integers(4, 12)),
        "enable_prefix_caching": draw(st.booleans()),
        "async_scheduling": draw(st.booleans()),
        "preemption_mode": draw(st.sampled_from(["recompute", "swap"])),
    }
    order = draw(st.permutations(names))
    return config, order[3:8], {name: draw(st.integers(0, 12)) for name in order[:3]}


@settings(max_examples=60 if COMPILED else 3)
@given(mixture=mixtures([n for n in REQUESTS if COMPILED or n not in SLOW]))
def test_any_mixture_with_aborts(alone: dict[str, Any], mixture: Any) -> None:
    config, names, aborted = mixture
    assert answers(engine(ModelRunner, **config), names, aborted) == {name: alone[name] for name in names}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of one layer with random weights."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=99, max_position_embeddings=MAX_LEN, initializer_range=0.3, **shape, **heads)
    return save(Qwen3ForCausalLM(config), tmp_path_factory.mktemp("qwen3"))


def test_a_model_as_the_backend_builds_it_writes_what_the_reference_writes(checkpoint: Path) -> None:
    config = EngineConfig(
        model=str(checkpoint), dtype="float32", device=DEVICE, num_blocks=5, max_num_seqs=8, max_num_batched_tokens=16,
        max_model_len=MAX_LEN, async_scheduling=True, preemption_mode="swap",
    )  # fmt: skip
    names = ["greedy", "the same prompt", "long", "n=3"]
    engines = [build_engine(config, checkpoint, plane=plane) for plane in ("reference", "fast")]
    expected, got = (answers(engine, names) for engine in engines)
    model = load_model(checkpoint, dtype="float32", ops=reference_ops)
    compared = 0
    for name in names:
        prompt, params = REQUESTS[name]
        for index, one in expected[name].items():
            other = got[name][index]
            same = agreement(model, params, prompt, index, one["tokens"], other["tokens"], 1e-4)
            for entry, mine in zip(one["logprobs"][:same], other["logprobs"]):
                assert mine.logprobs == pytest.approx(entry.logprobs, abs=1e-4)
            compared += same
    assert compared > 0.9 * sum(len(c["tokens"]) for one in expected.values() for c in one.values())
    assert min(engine.stats().num_preemptions for engine in engines) > 0
