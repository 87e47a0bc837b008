"""The sampler against its definition, written here once more row by row in plain Python.

Logits are drawn from a coarse grid and temperatures are powers of two, so that ties are frequent and exact.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.errors import UnsatisfiedAssumption

from quire.reference.control import philox
from quire.reference.control.params import SamplingParams
from quire.reference.sampling import SamplerState, sample, top_logprobs
from quire.reference.sampling.processors import process
from quire.reference.sampling.truncation import thresholds

STOP = (1, 3)
INF = math.inf


class Row:
    """One row of a batch: logits, history (prompt, then output), parameters and the key of its noise."""

    def __init__(self, logits, prompt=(), output=(), seed=0, stream=0, mask=None, **params):
        self.logits, self.prompt, self.output = [float(x) for x in logits], list(prompt), list(output)
        self.seed, self.stream, self.mask = seed, stream, mask
        self.params = SamplingParams(**{"max_tokens": 100, **params})


def run(batch, spread=1, device="cpu"):
    """Sample ``batch``; with ``spread`` the rows of the state lie apart and out of order."""
    vocab = len(batch[0].logits)
    state = SamplerState(len(batch) * spread, vocab)
    rows = np.arange(len(batch))[::-1] * spread
    tokens = np.full((len(batch) * spread, 64), vocab - 1, np.int32)
    for i, r in zip(rows, batch):
        history = r.prompt + r.output
        tokens[i, : len(history)] = history
        state.start(i, r.params, prompt_len=len(r.prompt), seed=r.seed, stream=r.stream, stop_ids=STOP)
    lengths = np.array([len(r.prompt) + len(r.output) for r in batch])
    masks = {i: np.array(r.mask) for i, r in enumerate(batch) if r.mask is not None}
    logits = torch.tensor([r.logits for r in batch], device=device)
    before = logits.clone()
    chosen = sample(logits, state, rows, lengths, tokens, masks)
    assert torch.equal(logits, before), "raw logits are not touched: logprobs still need them"
    return chosen.tolist()


def naive_scores(row):
    """Masks, biases and penalties, in order. -> list of float, -inf = masked."""
    p, vocab = row.params, len(row.logits)
    keep = set(range(vocab))
    banned = {
        w[-1]
        for w in p.bad_words_token_ids
        if len(w) - 1 <= len(row.output) and list(w[:-1]) == row.output[len(row.output) - len(w) + 1 :]
    }
    for left in (
        keep if row.mask is None else {t for t in keep if row.mask[t]},
        keep if p.allowed_token_ids is None else set(p.allowed_token_ids),
        keep - banned,
        keep - set(STOP) if len(row.output) < p.min_tokens else keep,
    ):
        keep = keep & left or keep  # a mask that leaves nothing is skipped
    scores = [x if t in keep else -INF for t, x in enumerate(row.logits)]
    for t, bias in (p.logit_bias or {}).items():
        scores[t] += bias
    for t in set(row.prompt + row.output):
        scores[t] = scores[t] / p.repetition_penalty if scores[t] > 0 else scores[t] * p.repetition_penalty
    for t in set(row.output):
        scores[t] -= p.frequency_penalty * row.output.count(t) + p.presence_penalty
    return scores


def naive_kept(scores, p):
    """min_p, then top-k, then top-p, on scores that are already divided by the temperature. -> set of tokens.

    Scores that float32 might see on the other side of a border are refused.
    """
    best = max(scores)
    kept = {t for t, s in enumerate(scores) if s > -INF}
    if p.min_p > 0:
        cut = best + math.log(p.min_p)
        if any(abs(scores[t] - cut) < 1e-4 for t in kept):
            raise UnsatisfiedAssumption
        kept = {t for t in kept if scores[t] >= cut}
    if 0 < p.top_k < len(scores):
        kth = sorted(scores, reverse=True)[p.top_k - 1]
        kept = {t for t in kept if scores[t] >= kth}
    if p.top_p < 1:
        weight = {t: math.exp(scores[t] - best) for t in kept}
        likelier = {t: sum(w for u, w in weight.items() if scores[u] > scores[t]) / sum(weight.values()) for t in kept}
        if any(abs(mass - p.top_p) < 1e-4 for mass in likelier.values()):
            raise UnsatisfiedAssumption
        kept = {t for t in kept if likelier[t] < p.top_p}
    return kept


def naive_sample(row):
    scores, p = naive_scores(row), row.params
    if p.temperature == 0:
        return scores.index(max(scores))
    scores = [s / p.temperature for s in scores]
    position = len(row.prompt) + len(row.output)
    noise = philox.gumbel(np.uint64(row.seed), row.stream, position, np.arange(len(scores)))
    perturbed = {t: np.float32(scores[t]) + noise[t] for t in naive_kept(scores, p)}
    return max(sorted(perturbed), key=lambda t: perturbed[t])


@st.composite
def rows(draw, vocab=12):
    """A row with any mixture of parameters, each of which is often off."""

    def maybe(name, values):
        return {name: draw(values)} if draw(st.integers(0, 3)) == 0 else {}

    token = st.integers(0, vocab - 1)
    history = st.lists(token, max_size=6)
    params = {"temperature": draw(st.sampled_from([0, 0.5, 1.0, 2.0]))}
    params |= maybe("top_k", st.integers(1, vocab)) | maybe("top_p", st.floats(0.05, 0.999))
    params |= maybe("min_p", st.floats(0.01, 1)) | maybe("min_tokens", st.integers(0, 5))
    params |= maybe("presence_penalty", st.sampled_from([-0.5, 1.0]))
    params |= maybe("frequency_penalty", st.sampled_from([-0.25, 0.5]))
    params |= maybe("repetition_penalty", st.sampled_from([0.5, 2.0, 4.0]))
    params |= maybe("allowed_token_ids", st.lists(token, min_size=1, max_size=6))
    params |= maybe("logit_bias", st.dictionaries(token, st.integers(-8, 8).map(lambda x: x / 4), max_size=3))
    params |= maybe("bad_words_token_ids", st.lists(st.lists(token, min_size=1, max_size=3).map(tuple)).map(tuple))
    return Row(
        draw(st.lists(st.integers(-12, 12).map(lambda x: x / 4), min_size=vocab, max_size=vocab)),
        prompt=draw(history),
        output=draw(history),
        seed=draw(st.integers(0, 2**64 - 1)),
        stream=draw(st.integers(0, 3)),
        **maybe("mask", st.lists(st.booleans(), min_size=vocab, max_size=vocab)),
        **params,
    )


@given(batch=st.lists(rows(), min_size=1, max_size=5), spread=st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_every_mixture_of_parameters_against_the_naive_definition(batch, spread):
    assert run(batch, spread) == [naive_sample(row) for row in batch]


# ------------------------------------------------------------------------------------------- one parameter at a time


def scores_of(row):
    """The row's logits after masks, biases and penalties."""
    state = SamplerState(1, len(row.logits))
    state.start(0, row.params, prompt_len=len(row.prompt), seed=0, stream=0, stop_ids=STOP)
    history = np.array([row.prompt + row.output], np.int32)
    masks = None if row.mask is None else {0: row.mask}
    lengths = np.array([history.shape[1]])
    return process(torch.tensor([row.logits]), state, np.array([0]), lengths, history, masks)[0].tolist()


def kept_of(logits, **params):
    """The tokens that truncation keeps."""
    p = SamplingParams(**params)
    state = SamplerState(1, len(logits))
    state.start(0, p, prompt_len=0, seed=0, stream=0, stop_ids=())
    scores = torch.tensor([logits]) / p.temperature
    return (
        (scores >= thresholds(scores, state.top_k, state.top_p, state.log_min_p)[:, None])[0].nonzero()[:, 0].tolist()
    )


def test_greedy_takes_the_lowest_of_equals():
    assert run([Row([0, 2, 1, 2], temperature=0)]) == [1]


def test_a_tiny_temperature_is_greedy():
    assert run([Row([1.0, 1.5, 1.4999], temperature=1e-30)]) == [1]


def test_repetition_divides_positive_and_multiplies_negative_logits_of_prompt_and_output():
    assert scores_of(Row([3, -3, 3, -3], prompt=[0], output=[1, 1], repetition_penalty=2.0)) == [1.5, -6, 3, -3]


def test_presence_and_frequency_count_the_output_only():
    row = Row([1, 1, 1, 1], prompt=[0, 0], output=[1, 2, 2], presence_penalty=0.25, frequency_penalty=0.5)
    assert scores_of(row) == [1, 0.25, -0.25, 1]


def test_bias_comes_before_penalties_and_masks_before_both():
    row = Row([-1, 1, 1], output=[0, 1], logit_bias={0: 3.0, 1: 100}, repetition_penalty=2.0, mask=[True, False, True])
    assert scores_of(row) == [1, -INF, 1]


def test_bad_words_ban_the_token_that_would_complete_one():
    words = ((7,), (4, 5), (4, 4, 6))
    banned = {(): {7}, (4,): {5, 7}, (4, 4): {5, 6, 7}, (4, 5): {7}}
    for output, want in banned.items():
        scores = scores_of(Row([0.0] * 8, prompt=[4, 4], output=output, bad_words_token_ids=words))
        assert {t for t, s in enumerate(scores) if s == -INF} == want, output


def test_min_tokens_masks_the_stop_tokens_until_enough_were_generated():
    for generated in range(4):
        scores = scores_of(Row([0.0] * 5, prompt=[0] * 3, output=[0] * generated, min_tokens=2))
        assert [t for t in range(5) if scores[t] == -INF] == (list(STOP) if generated < 2 else [])


def test_allowed_token_ids_and_tokens_outside_the_vocabulary():
    row = Row([0.0] * 4, allowed_token_ids=[1, 2, 99], logit_bias={2: 1.0, 99: 5.0}, bad_words_token_ids=((99,),))
    assert scores_of(row) == [-INF, 0, 1, -INF]


def test_a_mask_that_would_leave_nothing_is_skipped():
    assert scores_of(Row([0, 1, 2], mask=[False] * 3)) == [0, 1, 2]
    assert scores_of(Row([0, 1, 2], mask=[True, True, False], allowed_token_ids=[2])) == [0, 1, -INF]
    assert scores_of(Row([0, 1, 2], allowed_token_ids=[1], bad_words_token_ids=((1,),))) == [-INF, 1, -INF]
    assert scores_of(Row([0, 1, 2], allowed_token_ids=[1], min_tokens=1)) == [-INF, 1, -INF]


def test_a_model_that_gives_nothing_gets_token_zero():
    rows = [Row([-INF] * 5, **p) for p in ({}, {"temperature": 0}, {"top_p": 0.9}, {"top_k": 2, "min_p": 0.1})]
    assert run(rows) == [0] * len(rows)


def test_truncation_keeps_ties():
    assert kept_of([3.0, 1, 2, 2, 2], top_k=2) == [0, 2, 3, 4]
    assert kept_of([1.0] * 4, top_p=0.3) == [0, 1, 2, 3]
    log = [math.log(p) for p in (0.5, 0.2, 0.2, 0.1)]
    assert kept_of(log, top_p=0.49) == [0]
    assert kept_of(log, top_p=0.6) == [0, 1, 2]
    assert kept_of(log, top_p=0.91) == [0, 1, 2, 3]
    assert kept_of(log, min_p=0.39) == [0, 1, 2]
    assert kept_of(log, min_p=1.0) == [0]


def test_top_p_takes_probabilities_among_what_top_k_left():
    log = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert kept_of(log, top_p=0.6) == [0, 1]  # 0.4 is not enough
    assert kept_of(log, top_p=0.55, top_k=2) == [0]  # 0.4 / 0.7 is


def test_truncation_comes_after_temperature():
    log = [math.log(p) for p in (0.5, 0.3, 0.2)]
    assert kept_of(log, top_p=0.6, temperature=1.0) == [0, 1]
    assert kept_of(log, top_p=0.6, temperature=0.25) == [0]


def test_seed_stream_and_position_all_change_the_draw():
    flat = [0.0] * 64
    base = run([Row(flat, prompt=[0] * n) for n in range(20)])
    assert base == run([Row(flat, prompt=[0] * n) for n in range(20)])
    assert len(set(base)) > 10
    assert base != run([Row(flat, prompt=[0] * n, seed=1) for n in range(20)])
    assert base != run([Row(flat, prompt=[0] * n, stream=1) for n in range(20)])


# ------------------------------------------------------------------------------------------------------ distribution


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.15},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_tokens_are_drawn_from_the_softmax_of_what_is_kept(params):
    """20,000 draws with fixed seeds; chi-square over the kept tokens, bound at one in a thousand for 7 degrees."""
    logits = [2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0]
    n = 20_000
    state = SamplerState(n, len(logits))
    p = SamplingParams(**params)
    for row in range(n):
        state.start(row, p, prompt_len=1, seed=row, stream=0, stop_ids=())
    ids = sample(
        torch.tensor(logits).expand(n, -1), state, np.arange(n), np.ones(n, np.int64), np.zeros((n, 2), np.int32)
    )
    counts = np.bincount(ids.numpy(), minlength=len(logits))
    scores = [x / p.temperature for x in logits]
    kept = naive_kept(scores, p)
    total = sum(math.exp(scores[t]) for t in kept)
    expected = {t: n * math.exp(scores[t]) / total for t in kept}
    assert counts.sum() == sum(counts[t] for t in kept)
    assert sum((counts[t] - e) ** 2 / e for t, e in expected.items()) < 24.3


# -------------------------------------------------------------------------------------------------- batch independence


@pytest.mark.parametrize("vocab", [5, 31, 1000, 4099, 40_001])
def test_a_row_does_not_depend_on_its_neighbours(vocab):
    """Not only the token: the perturbed scores would differ in their last bits first, so compare many near ties."""
    generator = torch.Generator().manual_seed(vocab)
    settings_ = [
        {},
        {"temperature": 0.7, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 3, "top_p": 0.5},
        {"min_p": 0.2, "repetition_penalty": 1.3},
        {"temperature": 0, "presence_penalty": 0.3, "logit_bias": {1: 2.0}},
        {"temperature": 0.9, "top_p": 0.99999},
        {"temperature": 0, "min_tokens": 5},
        {"top_p": 0.3, "allowed_token_ids": [0, 2, 4]},
    ]
    batch = [
        Row(
            (torch.randn(vocab, generator=generator) * (1 + i % 3)).tolist(), [1, 2], [3, 3], seed=i, **settings_[i % 8]
        )
        for i in range(24)
    ]
    together = run(batch, spread=2)
    assert together == [run([row])[0] for row in batch]
    assert together[5:] == run(batch[5:])


@pytest.mark.parametrize("vocab", [7, 33, 4099, 50_001])
def test_thresholds_and_logprobs_are_bitwise_the_same_alone(vocab):
    torch.manual_seed(vocab)
    scores = torch.randn(9, vocab) * torch.linspace(0.5, 6, 9)[:, None]
    top_k = np.array([vocab, 3, vocab, vocab, 2, vocab, 5, vocab, vocab])
    top_p = np.array([0.9, 0.9, 0.5, 0.99, 1, 0.999999, 0.3, 0.7, 0.95])
    log_min_p = np.log(np.array([0, 0, 0.1, 0, 0, 0, 0, 0.5, 0]) + 1e-30).astype(np.float32)
    together = thresholds(scores, top_k, top_p, log_min_p)
    ids, counts = scores.argsort(-1)[:, 0], [3] * 9
    entries = top_logprobs(scores, ids, counts)
    for i in range(9):
        one = slice(i, i + 1)
        assert torch.equal(together[one], thresholds(scores[one], top_k[one], top_p[one], log_min_p[one])), i
        assert entries[one] == top_logprobs(scores[one], ids[one], counts[one]), i


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_another_device_chooses_the_same():
    """Logits without near ties, so that a last bit does not matter."""
    batch = [
        Row((torch.randperm(512) / 32).tolist(), [1, 2], [3, 3], seed=i, mask=[t % 5 > 0 for t in range(512)], **p)
        for i, p in enumerate(
            [
                {},
                {"temperature": 0.7, "top_p": 0.95},
                {"top_k": 30, "top_p": 0.5, "logit_bias": {4: 3.0}},
                {"min_p": 0.2, "repetition_penalty": 1.3},
                {"temperature": 0, "presence_penalty": 0.3, "frequency_penalty": 0.1},
                {"temperature": 0, "min_tokens": 5, "bad_words_token_ids": ((3, 9),)},
            ]
        )
    ]
    assert run(batch, device="cuda") == run(batch)
    logits = torch.tensor([r.logits for r in batch])
    ids = torch.arange(len(batch))
    for a, b in zip(top_logprobs(logits, ids, [4] * 6), top_logprobs(logits.cuda(), ids.cuda(), [4] * 6)):
        assert a.token_ids == b.token_ids and a.rank == b.rank and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_parameters_that_are_off_touch_nothing():
    state = SamplerState(2, 8)
    for row in range(2):
        state.start(row, SamplingParams(), prompt_len=1, seed=0, stream=0, stop_ids=STOP)
    logits = torch.randn(2, 8)
    lengths, tokens = np.ones(2, np.int64), np.zeros((2, 4), np.int32)
    assert process(logits, state, np.arange(2), lengths, tokens) is logits


# ------------------------------------------------------------------------------------------------------------ the rows


def test_starting_a_row_again_forgets_the_last_sequence():
    state, fresh = SamplerState(2, 8), SamplerState(2, 8)
    full = SamplingParams(
        temperature=0.3, top_k=3, top_p=0.5, min_p=0.1, min_tokens=3, logprobs=4, prompt_logprobs=1,
        presence_penalty=1, frequency_penalty=1, repetition_penalty=2, logit_bias={1: 1.0}, allowed_token_ids=[1],
        bad_words_token_ids=((1, 2),),
    )  # fmt: skip
    state.start(1, full, prompt_len=9, seed=-1, stream=5, stop_ids=(4,))
    assert state.seed[1] == 2**64 - 1
    for s in (state, fresh):
        s.start(1, SamplingParams(), prompt_len=2, seed=3, stream=0, stop_ids=())
    for name, value in vars(fresh).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(getattr(state, name), value), name
    assert not state.rules[1].lasting and len(state.rules[1].stop_ids) == 0


def test_a_fork_inherits_prompt_seed_and_stop_tokens_and_brings_its_own_parameters():
    state = SamplerState(2, 8)
    params = SamplingParams(temperature=0.5, min_tokens=2)
    state.start(0, params, prompt_len=3, seed=7, stream=0, stop_ids=(4,))
    state.fork(1, 0, replace(params, temperature=0.25), stream=2)
    assert (state.prompt_len[1], state.seed[1], state.stream[1], state.temperature[1]) == (3, 7, 2, 0.25)
    assert state.rules[1].stop_ids.tolist() == [4] and state.stream[0] == 0


# ------------------------------------------------------------------------------------------------------------ logprobs


@given(
    logits=st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9),
    token=st.integers(0, 8),
    count=st.integers(0, 12),
)
@settings(deadline=None)
def test_logprobs(logits, token, count):
    """The token first, then the top ones by falling log-probability, equal ones by rising id; rank is that order's."""
    token %= len(logits)
    entry = top_logprobs(torch.tensor([logits]), torch.tensor([token]), [count])[0]
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    total = math.log(sum(math.exp(x) for x in logits))
    assert entry.token_ids == [token, *order[:count]]
    assert entry.logprobs == pytest.approx([logits[t] - total for t in entry.token_ids], abs=1e-5)
    assert entry.rank == order.index(token) + 1


def test_logprobs_with_masked_logits_and_both_zeros():
    entry = top_logprobs(torch.tensor([[-0.0, 0.0, -INF]]), torch.tensor([2]), [3])[0]
    assert entry.token_ids == [2, 0, 1, 2] and entry.logprobs[0] == -INF and entry.rank == 3


def test_different_numbers_of_logprobs_in_one_call():
    entries = top_logprobs(torch.randn(3, 20), torch.tensor([1, 2, 3]), [0, 5, 2])
    assert [len(e.token_ids) for e in entries] == [1, 6, 3] == [len(e.logprobs) for e in entries]
    assert top_logprobs(torch.randn(0, 20), torch.tensor([], dtype=torch.int64), []) == []
