"""Scheduler: what a reader should know of its behaviour, one scene at a time. Its proof is the state machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from quire.reference.control.config import SchedulerConfig
from quire.reference.control.errors import ConfigError, RequestError
from quire.reference.control.params import BeamSearchParams, PoolingParams, SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Event, Request
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.speculation import DraftPolicy
from tests.reference.control.ghost import EOS, VOCAB, GhostRunner, alone, beams_alone, embedding_alone


def scheduler(**changes: Any) -> Scheduler:
    sizes: dict[str, Any] = {"num_blocks": 65, "max_model_len": 64, "block_size": 4, "max_num_seqs": 8}
    return Scheduler(SchedulerConfig(**(sizes | {"max_num_batched_tokens": 32} | changes)))


def request(name: str, prompt: list[int] | int = 5, **params: Any) -> Request:
    prompt = prompt if isinstance(prompt, list) else list(range(1, 1 + prompt))
    priority, salt = params.pop("priority", 0), params.pop("salt", None)
    params = {"max_tokens": 4, "ignore_eos": True} | params
    return Request(name, prompt, SamplingParams(**params), 0, (EOS,), priority, salt)


def steps(s: Scheduler, ghost: GhostRunner | None = None) -> Iterator[tuple[StepPlan, list[Event]]]:
    """Run to the end, step by step."""
    ghost = ghost or GhostRunner(s)
    while s.has_unfinished():
        plan = s.schedule()
        assert plan is not None
        yield plan, s.update(plan, ghost.run(plan))


def run(s: Scheduler) -> dict[tuple[str, int], list[int]]:
    outputs: dict[tuple[str, int], list[int]] = {}
    for _, events in steps(s):
        for event in events:
            outputs.setdefault((event.request_id, event.index), []).extend(event.token_ids)
    return outputs


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    s = scheduler(max_num_batched_tokens=8)
    s.add(request("short", 3, max_tokens=8))
    s.add(request("long", [7] * 20))
    shape = [[(p.start, p.n, p.samples) for p in plan.seqs] for plan, _ in steps(s)]
    assert shape[0] == [(0, 3, True), (0, 5, False)]
    assert shape[1] == [(3, 1, True), (5, 7, False)]  # the decode goes first, the chunk takes what is left
    assert shape[2] == [(4, 1, True), (12, 7, False)]
    assert shape[3] == [(5, 1, True), (19, 1, True)]


def test_without_chunked_prefill_a_prompt_waits_for_a_step_that_holds_it() -> None:
    s = scheduler(max_num_batched_tokens=64, enable_chunked_prefill=False)
    s.add(request("a", 40))
    s.add(request("b", [9] * 30))
    first, second = [[p.n for p in plan.seqs] for plan, _ in steps(s)][:2]
    assert first == [40] and second == [1, 30]
    with pytest.raises(ConfigError, match="max_num_batched_tokens=32"):
        scheduler(enable_chunked_prefill=False)


def test_parallel_samples_share_the_prompt_and_copy_its_tail_on_write() -> None:
    s = scheduler()
    s.add(request("r", 6, n=3))
    plans = [plan for plan, _ in steps(s)]
    assert len(plans[0].starts) == 1
    forks = plans[1].forks
    assert [(f.parent_row, f.length, f.stream) for f in forks] == [
        (plans[0].seqs[0].row, 6, 1),
        (plans[0].seqs[0].row, 6, 2),
    ]
    by_stream = {p.row: p for p in plans[1].seqs}
    assert all(not by_stream[f.row].write and by_stream[f.row].start == 5 for f in forks)
    copies = [c for plan in plans for c in plan.copies]
    assert len(copies) == 2 and s.stats().num_copies == 2  # the last of three writes in place


def test_streams_of_one_request_differ_and_equal_their_definition() -> None:
    s = scheduler()
    r = request("r", 6, n=2, best_of=3, max_tokens=10)
    s.add(r)
    outputs = run(s)
    assert {index: outputs["r", index] for index in range(3)} == alone(r, 64)
    assert len({tuple(o) for o in outputs.values()}) == 3


def test_the_prefix_cache_skips_what_an_earlier_request_computed() -> None:
    s = scheduler()
    ghost = GhostRunner(s)
    s.add(request("a", 13))
    list(steps(s, ghost))
    s.add(request("b", 13))
    (plan, events), *_ = steps(s, ghost)
    assert plan.seqs[0].start == 12 and events[0].num_cached_tokens == 12
    stats = s.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (26, 12)


def test_first_come_first_served_against_priority() -> None:
    for policy, order in (("fcfs", ["late", "urgent"]), ("priority", ["urgent", "late"])):
        s = scheduler(policy=policy, max_num_seqs=1)
        s.add(request("late", [3] * 5, priority=5))
        s.add(request("urgent", [4] * 5, priority=1))
        ended = [e.request_id for _, events in steps(s) for e in events if e.finish_reason]
        assert ended == order


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_the_latest_is_preempted_and_still_says_the_same(mode: Any) -> None:
    s = scheduler(num_blocks=9, num_host_blocks=8, preemption_mode=mode, enable_prefix_caching=False, max_model_len=24)
    requests = [request("first", [1] * 8, max_tokens=14), request("second", [2] * 8, max_tokens=14)]
    for r in requests:
        s.add(r)
    ends: list[str] = []
    outputs: dict[tuple[str, int], list[int]] = {}
    for _, events in steps(s):
        for e in events:
            outputs.setdefault((e.request_id, e.index), []).extend(e.token_ids)
            ends += [e.request_id] if e.finish_reason else []
    stats = s.stats()
    assert stats.num_preemptions > 0 and ends == ["first", "second"]
    assert (stats.num_swapped_out > 0) == (mode == "swap")
    for r in requests:
        assert outputs[r.request_id, 0] == alone(r, 24)[0]


def test_nobody_starves_when_everything_is_scarce() -> None:
    """Many requests, hardly any blocks, rows or budget: all end, in the order of arrival up to the batch's width."""
    s = scheduler(num_blocks=18, max_num_seqs=3, max_num_batched_tokens=5, enable_prefix_caching=False)
    requests = [request(f"r{i}", [1 + i % 7] * (1 + 5 * i % 23), max_tokens=1 + 7 * i % 30) for i in range(40)]
    for r in requests:
        s.add(r)
    num_steps = 0
    outputs: dict[str, list[int]] = {}
    for _, events in steps(s):
        num_steps += 1
        for e in events:
            outputs.setdefault(e.request_id, []).extend(e.token_ids)
    assert [outputs[r.request_id] for r in requests] == [alone(r, 64)[0] for r in requests]
    assert num_steps < 4 * sum(len(r.prompt_token_ids) + len(outputs[r.request_id]) for r in requests)


def test_a_stop_found_one_step_late_drops_the_step_that_ran_ahead() -> None:
    s = scheduler()
    r = request("r", 5, max_tokens=20, stop_token_ids=[])
    second = alone(r, 64)[0][1]
    s.add(request("r", 5, max_tokens=20, stop_token_ids=[second]))
    ghost = GhostRunner(s)
    launched = []
    for _ in range(3):  # three steps are launched before the first result is looked at
        plan = s.schedule()
        assert plan is not None
        launched.append((plan, ghost.run(plan)))
    events = [e for plan, result in launched for e in s.update(plan, result)]
    assert [e.finish_reason for e in events] == [None, "stop"] and events[-1].stop_reason == second
    assert not s.has_unfinished() and s.stats().blocks_used == 0


def test_accepted_drafts_behind_a_stop_are_no_part_of_what_is_published() -> None:
    s = scheduler(speculation=DraftPolicy(most=7, adaptive=False))
    s.add(Request("r", [1, 2, 3, 4], SamplingParams(max_tokens=30), 0, (EOS,)))
    drafts = [6, 7, EOS, 8, 9, 10, 11]
    plan = s.schedule()
    assert plan is not None
    s.update(plan, StepResult(0, [[5]], drafts={0: drafts}))
    plan = s.schedule()
    assert plan is not None and plan.seqs[0].n_draft == 7 and s.kv.prefix is not None
    s.kv.prefix.touched = set()
    (event,) = s.update(plan, StepResult(1, [[*drafts, 12]], accepted={0: 7}))
    assert event.token_ids == [6, 7, EOS] and event.finish_reason == "stop"
    assert len(s.kv.prefix.touched) == 1, "8 tokens fill two blocks, and the prompt's was published before"


def test_a_request_is_aborted_at_any_moment_and_its_blocks_are_free_at_once() -> None:
    s = scheduler()
    s.add(request("gone", 9, n=3, max_tokens=30))
    s.add(request("stays", 9, max_tokens=6))
    ghost = GhostRunner(s)
    for _ in range(2):
        plan = s.schedule()
        assert plan is not None
        s.update(plan, ghost.run(plan))
    pending = s.schedule()
    assert pending is not None
    result = ghost.run(pending)
    events = s.abort("gone")
    assert sorted(e.index for e in events) == [0, 1, 2] and {e.finish_reason for e in events} == {"abort"}
    assert s.abort("gone") == s.abort("never was") == []
    assert s.stats().blocks_used == 3  # of the other request
    assert {e.request_id for e in s.update(pending, result)} == {"stays"}


def test_results_must_come_with_their_plan() -> None:
    s = scheduler()
    s.add(request("r"))
    plan = s.schedule()
    assert plan is not None
    result = GhostRunner(s).run(plan)
    result.step += 1
    with pytest.raises(ValueError, match="step 1 was given for the plan of step 0"):
        s.update(plan, result)


@pytest.mark.parametrize(
    ("bad", "field", "remedy"),
    [
        (request("r", []), "prompt_token_ids", "at least one token"),
        (request("r", 64), "prompt_token_ids", "to 63 tokens"),
        (request("r", n=9), "n=9", "max_num_seqs=9"),
        (request("taken"), "request_id", "of its own"),
        (request("r", 10, max_tokens=50), "max_tokens=50", "Lower max_tokens to 15"),
        (Request("r", [1] * 4, BeamSearchParams(beam_width=9, max_tokens=2)), "beam_width=9", "max_num_seqs=9"),
        (Request("r", [1] * 4, BeamSearchParams(beam_width=3, max_tokens=9)), "max_tokens=9", "Lower max_tokens to 5"),
    ],
)
def test_what_could_never_run_is_refused_and_harms_nobody(bad: Request, field: str, remedy: str) -> None:
    s = scheduler(num_blocks=7)
    good = request("taken", 8)
    s.add(good)
    with pytest.raises(RequestError) as caught:
        s.add(bad)
    assert field in str(caught.value) and remedy in str(caught.value)
    assert run(s) == {("taken", 0): alone(good, 64)[0]}


def test_aborted_requests_are_not_kept_while_they_would_have_waited() -> None:
    s = scheduler(max_num_seqs=1, policy="priority")
    s.add(request("runs", max_tokens=50))
    s.add(request("first in line", priority=-1))
    for i in range(500):  # behind one that waits for a row, impatient ones come and go
        s.add(request(f"impatient {i}", priority=1))
        s.abort(f"impatient {i}")
    assert len(s.waiting) < 50
    assert set(run(s)) == {("runs", 0), ("first in line", 0)}


@pytest.mark.parametrize("width", [1, 2, 3])
def test_beams_live_on_however_many_of_their_likeliest_tokens_are_stops(width: int) -> None:
    params = BeamSearchParams(beam_width=width, max_tokens=6, stop_token_ids=tuple(range(1, VOCAB - 3)))
    for first in range(8):
        s = scheduler()
        asked = Request("r", [first, 2, 3], params, 0, (EOS,))
        s.add(asked)
        (last,) = [event for _, events in steps(s) for event in events]
        assert last.beams is not None
        assert [(b.token_ids, b.cumulative_logprob) for b in last.beams] == beams_alone(asked, 64)


def pooled(name: str, prompt: list[int], pooling: str = "mean", priority: int = 0) -> Request:
    return Request(name, prompt, PoolingParams(pooling=pooling), 0, (EOS,), priority)


def test_a_pooled_prompt_is_computed_in_chunks_and_ends_with_its_embedding() -> None:
    s = scheduler(max_num_batched_tokens=8)
    s.add(request("text", 3, max_tokens=8))
    s.add(pooled("vector", [7] * 14))
    taken = list(steps(s))
    assert [[(p.start, p.n, p.samples, p.pools) for p in plan.seqs[1:]] for plan, _ in taken[:3]] == [
        [(0, 5, False, False)], [(5, 7, False, False)], [(12, 2, False, True)],
    ]  # fmt: skip
    assert all(len(plan.seqs) == 1 for plan, _ in taken[3:])
    (event,) = [e for _, events in taken for e in events if e.request_id == "vector"]
    assert event == Event("vector", 0, [], finish_reason="stop", embedding=embedding_alone(pooled("x", [7] * 14)))
    assert s.stats().blocks_used == 0


def test_a_pooled_prompt_may_fill_the_context_and_the_cache() -> None:
    s = scheduler(num_blocks=17)  # 16 that can be used, of 4 tokens
    s.add(pooled("full", [1 + i % 7 for i in range(64)]))
    assert [e.embedding for _, events in steps(s) for e in events] == [
        embedding_alone(pooled("x", [1 + i % 7 for i in range(64)]))
    ]
    with pytest.raises(RequestError, match=r"max_model_len=64.*Shorten the prompt to 64"):
        s.add(pooled("longer", [1] * 65))
    with pytest.raises(RequestError, match=r"9 KV blocks of 4 tokens.*Shorten the prompt to 36"):
        scheduler(num_blocks=10).check(37, PoolingParams())


def test_the_last_position_may_come_from_the_cache_a_mean_computes_all_and_publishes() -> None:
    s, prompt, cached = scheduler(), [1, 2, 3, 4, 5, 6, 7, 8], []
    ghost = GhostRunner(s)
    for name, pooling in (("a", "mean"), ("b", "mean"), ("c", "last"), ("d", "mean")):
        s.add(pooled(name, prompt, pooling))
        ((plan, events),) = steps(s, ghost)
        cached.append((events[0].num_cached_tokens, plan.seqs[0].n, plan.seqs[0].write))
    assert cached == [(0, 8, True), (0, 8, True), (8, 1, False), (0, 8, True)]


@pytest.mark.parametrize(("pooling", "again_from"), [("mean", 0), ("last", 20)])
def test_preempted_a_mean_starts_anew_and_the_last_position_goes_on_from_the_swap_space(
    pooling: str, again_from: int
) -> None:
    s = scheduler(
        num_blocks=8, max_model_len=28, max_num_batched_tokens=5, enable_prefix_caching=False,
        preemption_mode="swap", num_host_blocks=8,
    )  # fmt: skip
    s.add(request("first", 1, max_tokens=10))
    s.add(pooled("later", [3] * 24, pooling))
    starts, vectors = [], []
    for plan, events in steps(s):
        starts += [p.start for p in plan.seqs if p.seq_id == 1]
        vectors += [e.embedding for e in events if e.request_id == "later"]
        assert not (pooling == "mean" and plan.swap_out)
    assert s.stats().num_preemptions >= 1 and vectors == [embedding_alone(pooled("x", [3] * 24, pooling))]
    assert starts[:5] == [0, 4, 8, 12, 16] and starts[5] == again_from
