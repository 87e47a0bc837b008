"""The controller: k follows acceptance and batch size, down to 0, and finds back."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from quire.reference.control.speculation import LONGEST_PAUSE, WORTH, Acceptance, DraftPolicy, Speculation, best_length

LOOKUP = DraftPolicy(most=8, free_tokens=8.0)


def test_k_grows_with_acceptance_and_shrinks_with_the_batch():
    by_rate = [best_length(rate, 1, LOOKUP) for rate in (0.05, 0.3, 0.6, 0.9, 1.0)]
    assert by_rate == sorted(by_rate) and by_rate[0] == 0 and by_rate[-1] == 8
    by_batch = [best_length(0.8, batch, LOOKUP) for batch in (1, 4, 16, 64, 256)]
    assert by_batch == sorted(by_batch, reverse=True) and by_batch[-1] == 0
    dear = DraftPolicy(most=8, free_tokens=8.0, draft_cost=0.3)
    assert best_length(0.8, 1, dear) < best_length(0.8, 1, LOOKUP)


@given(st.floats(0, 1), st.integers(1, 300), st.floats(0.1, 500), st.floats(0, 2))
def test_best_length_is_the_best_of_all(rate, batch, free_tokens, draft_cost):
    policy = DraftPolicy(most=6, free_tokens=free_tokens, draft_cost=draft_cost)
    price = batch / (free_tokens + batch) + draft_cost
    gains = [sum(rate**i for i in range(k + 1)) / (1 + k * price) for k in range(7)]
    k = best_length(rate, batch, policy)
    assert gains[k] >= max(gains) - 1e-9 if k else max(gains) <= WORTH + 1e-9


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
