"""The controller: k follows acceptance and batch size, down to 0, and finds back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from quire.reference.control.config import SchedulerConfig
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Request
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.speculation import (
    AT_LEAST,
    LONGEST_PAUSE,
    WORTH,
    Acceptance,
    DraftPolicy,
    Speculation,
    best_length,
    tokens_to_come,
)

LOOKUP = DraftPolicy(most=8, free_tokens=8.0)


def test_k_grows_with_acceptance_and_shrinks_with_the_batch():
    by_rate = [best_length(rate, 1, LOOKUP)[0] for rate in (0.05, 0.3, 0.6, 0.9, 1.0)]
    assert by_rate == sorted(by_rate) and by_rate[0] == 0 and by_rate[-1] == 8
    by_batch = [best_length(0.8, batch, LOOKUP)[0] for batch in (1, 4, 16, 64, 256)]
    assert by_batch == sorted(by_batch, reverse=True) and by_batch[-1] == 0
    dear = DraftPolicy(most=8, free_tokens=8.0, draft_cost=0.3)
    assert best_length(0.8, 1, dear)[0] < best_length(0.8, 1, LOOKUP)[0]


@given(st.floats(0, 1), st.integers(1, 300), st.floats(0.1, 500), st.floats(0, 2))
def test_best_length_is_the_best_of_all(rate, batch, free_tokens, draft_cost):
    policy = DraftPolicy(most=6, free_tokens=free_tokens, draft_cost=draft_cost)
    price = batch / (free_tokens + batch) + draft_cost
    gains = [sum(rate**i for i in range(k + 1)) / (1 + k * price) for k in range(7)]
    k, gain = best_length(rate, batch, policy)
    assert gains[k] >= max(gains) - 1e-9 if k else max(gains) <= WORTH + 1e-9
    assert abs(gain - gains[k]) < 1e-9


def test_a_sequence_whose_drafts_fail_stops_and_tries_again_ever_less_often():
    controller = Speculation(LOOKUP)
    sequence = controller.new()
    asked = []
    for _ in range(600):
        asked.append(controller.length(sequence, 1))
        if asked[-1]:
            controller.count(sequence, asked[-1], 0)
    tries = [i for i, k in enumerate(asked) if k]
    gaps = [b - a for a, b in pairwise(tries)]
    assert asked[0] > 0 and len(tries) < 25 and max(gaps) == LONGEST_PAUSE + 1
    for _ in range(2 * LONGEST_PAUSE):  # now they are right again
        k = controller.length(sequence, 1)
        if k:
            controller.count(sequence, k, k)
    assert controller.length(sequence, 1) > 1


def test_new_sequences_start_with_the_luck_of_the_others():
    controller = Speculation(LOOKUP)
    hopeful = controller.length(controller.new(), 1)
    for _ in range(50):
        controller.count(controller.new(), 5, 0)
    assert hopeful > 0 == controller.length(controller.new(), 1)


def test_where_nothing_could_pay_nothing_is_tried():
    controller = Speculation(DraftPolicy(most=5, free_tokens=8.0, draft_cost=0.5))
    sequence = controller.new()
    assert not any(controller.length(sequence, 64) for _ in range(500))


def test_without_adaptation_k_is_fixed():
    controller = Speculation(DraftPolicy(most=5, adaptive=False))
    assert controller.length(Acceptance(0.0, 100.0), 1000) == 5


def test_with_a_draft_model_all_stop_together_and_one_tries_for_all():
    policy = DraftPolicy(most=5, free_tokens=8.0, draft_cost=0.3, lookahead=True)
    controller = Speculation(policy)
    sequences = [controller.new() for _ in range(4)]
    for _ in range(100):
        controller.count(sequences[0], 5, 0)  # one has no luck at all, and all stop
    asked = [[controller.length(sequence, 4) for sequence in sequences] for _ in range(300)]
    assert sum(map(sum, asked)) < 10 and all(sum(step) <= 1 for step in asked)


MODEL = DraftPolicy(most=5, free_tokens=28.0, draft_cost=0.35, lookahead=True)


def test_what_a_draft_model_has_missed_must_pay_back():
    controller = Speculation(MODEL)
    lucky = Acceptance(9.5, 10.0)
    assert controller.length(lucky, 4, behind=2, to_come=AT_LEAST) > 0  # it has drafted all along
    assert controller.length(lucky, 4, behind=500, to_come=AT_LEAST) == 0
    assert controller.length(lucky, 4, behind=500, to_come=200) > 0
    limits = [max(m for m in range(2000) if controller.length(lucky, b, m, 50)) for b in (1, 2, 4, 8)]
    assert limits == sorted(limits, reverse=True) and limits[0] > 4 * limits[-1]  # a token's share of a step shrinks
    lookup = Speculation(LOOKUP)
    assert lookup.length(lucky, 4, behind=10**6, to_come=1) > 0  # there is nothing that it could have missed


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_sequence_goes_on_as_long_again_but_not_beyond_its_room(brought, room):
    assert tokens_to_come(brought, room) == min(room, max(AT_LEAST, brought))


def test_no_attempt_where_a_draft_model_is_far_behind():
    controller = Speculation(MODEL)
    sequence = controller.new()
    for _ in range(100):
        controller.count(sequence, 5, 0)
    assert not any(controller.length(sequence, 1, behind=5000, to_come=AT_LEAST) for _ in range(300))
    assert any(controller.length(sequence, 1, behind=1, to_come=AT_LEAST) for _ in range(300))


def answer(scheduler: Scheduler, num_steps: int) -> list[StepPlan]:
    """Steps that bring one token per sampled sequence, nobody ever offering a draft."""
    plans = []
    for _ in range(num_steps):
        plan = scheduler.schedule()
        plans.append(plan)
        scheduler.update(plan, StepResult(plan.step, [[1] if s.samples else [] for s in plan.seqs]))
    return plans


def scheduler_with(policy: DraftPolicy, lengths: list[int], **more: int) -> Scheduler:
    settings = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 256, "num_blocks": 400} | more
    scheduler = Scheduler(SchedulerConfig(block_size=4, speculation=policy, **settings))
    for i, length in enumerate(lengths):
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        scheduler.add(Request(str(i), [2 + i, 3, 4], params))
    return scheduler


def test_those_who_come_together_are_asked_as_the_batch_they_make():
    """Not the first as if it were alone: 32 of them are too many for a draft model, 4 are not."""
    (alone,) = answer(scheduler_with(MODEL, [20] * 4), 1)
    assert [s.propose > 0 for s in alone.seqs] == [True] * 4
    (crowd,) = answer(scheduler_with(MODEL, [20] * 32), 1)
    assert [s.propose for s in crowd.seqs] == [0] * 32


def test_what_a_sequence_is_behind_counts_from_the_last_time_drafts_were_asked_for():
    """30 end early. Of the two that remain, one is about to end too, for it not even 3 missed tokens would pay back."""
    plans = answer(scheduler_with(MODEL, [10] * 30 + [12, 100]), 14)
    assert not any(s.propose for plan in plans[:9] for s in plan.seqs)
    asked = {s.seq_id for plan in plans[10:] for s in plan.seqs if s.propose}
    assert asked == {31}


def test_room_that_is_not_there_is_not_taken_by_newcomers():
    """Two prompts fill both blocks; with a third block the first to come gets it for its drafts."""
    for num_blocks, asked in ((3, [0, 0]), (4, [2, 0])):
        (plan,) = answer(scheduler_with(MODEL, [5, 5], num_blocks=num_blocks, max_model_len=8), 1)
        assert [s.propose for s in plan.seqs] == asked
        assert [len(s.new_blocks) for s in plan.seqs] == [1 + (k > 0) for k in asked]
