"""The engine façade on a ghost runner: the loop, run-ahead, seeds, checks at the door, failures."""

from __future__ import annotations

import numpy as np
import pytest

from quire import BeamSearchParams, RequestError, SamplingParams
from quire.reference.engine import EngineError
from tests.reference.ghost import GhostRunner, ghost_engine, hashed, run


def test_tokens_are_those_of_the_runner():
    engine = ghost_engine()
    request_id = engine.add_request([1, 2, 3], SamplingParams(max_tokens=5))
    expected = [1, 2, 3]
    for _ in range(5):
        expected.append(hashed(expected, 0, 100))
    assert run(engine) == {request_id: {0: expected[3:]}}
    assert not engine.has_unfinished() and engine.step() == []


@pytest.mark.parametrize("ahead", [False, True])
def test_run_ahead_changes_nothing_but_the_order_of_launch_and_wait(ahead):
    runner = GhostRunner()
    engine = ghost_engine(runner, async_scheduling=ahead, eos=(7,), max_num_batched_tokens=6)
    for i in range(6):
        engine.add_request(list(range(i, i + 9)), SamplingParams(max_tokens=12, n=1 + i % 3))
    outputs = run(engine)
    # The same work on a fresh engine, one request at a time.
    for i in range(6):
        alone = ghost_engine(eos=(7,))
        alone.add_request(list(range(i, i + 9)), SamplingParams(max_tokens=12, n=1 + i % 3), request_id="x")
        assert run(alone)["x"] == outputs[f"req-{i}"]
    assert runner.launched == runner.waited == list(range(len(runner.launched)))


def test_run_ahead_launches_a_step_before_it_waits_for_the_last():
    runner = GhostRunner()
    engine = ghost_engine(runner, async_scheduling=True)
    engine.add_request([1], SamplingParams(max_tokens=8))
    engine.step()
    assert runner.launched == [0, 1] and runner.waited == [0]


def test_run_ahead_keeps_a_step_on_its_way_while_the_last_one_is_looked_at():
    """Also one that could not be planned before the last result: beams, and drafts, wait for it."""
    runner = GhostRunner()
    engine = ghost_engine(runner, async_scheduling=True)
    engine.add_request([1], BeamSearchParams(beam_width=2, max_tokens=4))
    engine.step()
    assert runner.launched == [0, 1] and runner.waited == [0]


def test_what_has_arrived_before_a_failure_is_reported():
    """The engine has landed step 0 when the launch of step 1 fails, which waited for it."""
    engine = ghost_engine(GhostRunner(fail_at=1), async_scheduling=True)
    engine.add_request([1], BeamSearchParams(beam_width=2, max_tokens=4))
    engine.add_request([1], SamplingParams(max_tokens=1))
    events = engine.step()
    assert [e.finish_reason for e in events] == ["length"]
    with pytest.raises(EngineError, match="told to fail"):
        engine.step()


def test_max_tokens_none_is_what_the_context_leaves():
    engine = ghost_engine()
    request_id = engine.add_request([1] * 10, SamplingParams(max_tokens=None))
    assert len(run(engine)[request_id][0]) == 64 - 10


def test_seeds_come_from_the_engine_and_the_order_of_arrival():
    def seeds(engine_seed, *own):
        engine = ghost_engine(seed=engine_seed)
        for seed in own:
            engine.add_request([1], SamplingParams(seed=seed))
        return [group.request.seed for group in engine.scheduler.groups.values()]

    assert seeds(0, None, None) == seeds(0, None, None)
    assert len({*seeds(0, None, None), *seeds(1, None, None)}) == 4
    assert seeds(0, 5, None)[0] == 5
    assert seeds(0, 5, None)[1] == seeds(0, None, None)[1]  # a seed of one's own shifts nobody else's


def test_ids_that_the_engine_gives_avoid_those_that_users_gave():
    engine = ghost_engine()
    engine.add_request([1], SamplingParams(max_tokens=2), request_id="req-1")
    assert engine.add_request([1], SamplingParams(max_tokens=2)) == "req-2"


BAD_REQUESTS = {
    "empty": ([], {}, "prompt_token_ids"),
    "too long": ([1] * 64, {}, "prompt_token_ids"),
    "negative id": ([3, -1], {}, "prompt_token_ids"),
    "id out of range": ([3, 100], {}, "prompt_token_ids"),
    "float id": ([3, 1.0], {}, "prompt_token_ids"),
    "bool id": ([3, True], {}, "prompt_token_ids"),
    "text": ("abc", {}, "prompt_token_ids"),
    "n": ([3], {"n": 9}, "n"),
    "best_of": ([3], {"n": 2, "best_of": 9}, "best_of"),
    "stop_token_ids": ([3], {"stop_token_ids": [100]}, "stop_token_ids"),
    "logit_bias": ([3], {"logit_bias": {100: 1.0}}, "logit_bias"),
    "allowed_token_ids": ([3], {"allowed_token_ids": [2, 100]}, "allowed_token_ids"),
    "logprobs": ([3], {"logprobs": 101}, "logprobs"),
    "min_tokens": ([3] * 60, {"min_tokens": 5, "max_tokens": None}, "min_tokens"),
    "bad_words": ([3], {"bad_words": ["x"]}, "bad_words"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_refused_and_others_finish_unharmed(case):
    prompt, params, field = BAD_REQUESTS[case]
    engine = ghost_engine()
    good = engine.add_request([1, 2], SamplingParams(max_tokens=4))
    engine.step()
    before = engine.stats()
    with pytest.raises(RequestError) as caught:
        engine.add_request(prompt, SamplingParams(**params))
    assert caught.value.field == field and caught.value.remedy
    assert engine.stats() == before
    assert len(run(engine)[good][0]) == 3
    assert engine.stats().blocks_used == 0


def test_beams_and_parameters_of_a_wrong_type_are_checked_too():
    engine = ghost_engine()
    with pytest.raises(RequestError, match="beam_width=9"):
        engine.add_request([1], BeamSearchParams(beam_width=9, max_tokens=2))
    with pytest.raises(RequestError, match="sampling_params"):
        engine.add_request([1], {"temperature": 1})


def test_numpy_token_ids_are_welcome():
    engine = ghost_engine()
    request_id = engine.add_request(np.array([1, 2, 3]), SamplingParams(max_tokens=1))
    assert run(engine)[request_id][0] == [hashed([1, 2, 3], 0, 100)]


def test_abort_ends_a_request_and_spares_the_others():
    engine = ghost_engine(async_scheduling=True)
    gone = engine.add_request([1, 2], SamplingParams(max_tokens=30, n=2))
    stays = engine.add_request([3, 4], SamplingParams(max_tokens=6))
    for _ in range(3):
        engine.step()
    events = engine.abort_request(gone)
    assert {(e.index, e.finish_reason) for e in events} == {(0, "abort"), (1, "abort")}
    assert engine.abort_request(gone) == engine.abort_request("never seen") == []
    rest = run(engine)
    assert set(rest) == {stays}
    assert engine.stats().blocks_used == 0


def test_a_sequence_finished_from_above_brings_no_more_tokens():
    engine = ghost_engine(async_scheduling=True)
    request_id = engine.add_request([1, 2], SamplingParams(max_tokens=30, n=2))
    for _ in range(4):
        engine.step()
    engine.finish(request_id, 0)
    assert set(run(engine)[request_id]) == {1}
    assert engine.stats().blocks_used == 0


def test_a_failing_step_shows_its_cause_and_stops_the_engine():
    engine = ghost_engine(GhostRunner(fail_at=2))
    engine.add_request([1], SamplingParams(max_tokens=10))
    with pytest.raises(EngineError, match="ZeroDivisionError: the ghost was told to fail") as caught:
        run(engine)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    for later in (engine.step, lambda: engine.add_request([1], SamplingParams())):
        with pytest.raises(EngineError, match="told to fail"):
            later()
