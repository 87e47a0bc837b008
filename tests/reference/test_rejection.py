"""Rejection sampling draws from the target's distribution, whatever the drafts were drawn from.

A target that is a Markov chain over eight tokens: what follows a token is known exactly, so every token that came out
can be counted against it, and counted by whether its predecessor was an accepted draft or not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import LLM, SamplingParams
from quire.reference.control import philox
from quire.reference.sampling import SamplerState, distribution, draw, reject, rejection, sample
from tests.reference.test_metamorphic import assert_drained, gist
from tests.reference.test_speculation import Scripted, any_params, any_prompt, speculation
from tests.toys import tiny_checkpoint

VOCAB, ROWS, DRAFTS = 8, 200_000, 2
LIMIT = 40.0  # chi-square with 7 degrees of freedom: exceeded once in a million


def chain(seed: int, sharpness: float) -> torch.Tensor:
    """Logits of what follows each token, [V, V]."""
    return sharpness * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed))


TARGET = chain(1, 1.0)
EVEN = torch.arange(VOCAB) % 2 == 0
HALF = TARGET.masked_fill(EVEN, -torch.inf)
DRAFT_CHAINS = {  # the target, and what the drafts are drawn from (None: always the token after the last, for certain)
    "near": (TARGET, TARGET + chain(2, 0.2)),
    "far": (TARGET, chain(3, 2.0)),
    "disjoint": (HALF, TARGET.masked_fill(~EVEN, -torch.inf)),
    "the same": (TARGET, TARGET),
    "certain": (TARGET, None),
}


def state_of(params: SamplingParams) -> SamplerState:
    """Every row with these parameters and a seed of its own, without a Python loop over the rows."""
    state = SamplerState(ROWS, VOCAB)
    state.start(0, params, prompt_len=1, seed=0, stream=0, stop_ids=())
    for name in ("temperature", "top_p", "top_k", "log_min_p"):
        getattr(state, name)[:] = getattr(state, name)[0]
    state.seed[:] = np.arange(ROWS)
    return state


def run(case: str, params: SamplingParams) -> tuple[np.ndarray, list[list[int]], list[int], torch.Tensor]:
    """Draft and judge ``DRAFTS`` tokens in every row -> (first tokens, gained, accepted, the target's true chain)."""
    target, drafts = DRAFT_CHAINS[case]
    state, rows = state_of(params), np.arange(ROWS)
    tokens = np.zeros((ROWS, DRAFTS + 2), np.int32)
    tokens[:, 0] = rows % VOCAB
    probs = []
    for i in range(1, DRAFTS + 1):
        lengths = np.full(ROWS, i)
        if drafts is None:
            tokens[:, i] = (tokens[:, i - 1] + 1) % VOCAB
            continue
        weights = distribution(drafts[tokens[:, i - 1]], state, rows, lengths, tokens)
        tokens[:, i] = draw(weights, state, rows, lengths, philox.DRAFT).numpy()
        probs.append(weights)
    draft_probs = list(torch.stack(probs, 1)) if probs else [None] * ROWS
    logits = target[tokens[:, : DRAFTS + 1]].flatten(0, 1)
    gained, accepted = reject(logits, state, rows, np.ones(ROWS, np.int64), tokens, np.full(ROWS, DRAFTS), draft_probs)
    truth = distribution(target, state, rows[:VOCAB], np.ones(VOCAB, np.int64), tokens)
    return tokens[:, 0], gained, accepted, truth


def worst_chi_square(case: str, params: SamplingParams) -> float:
    """The largest over all predecessors and places, each against the target's chain."""
    first, gained, accepted, truth = run(case, params)
    counts = np.zeros((DRAFTS + 1, VOCAB, VOCAB))
    for before, text, agreed in zip(first.tolist(), gained, accepted):
        assert len(text) == agreed + 1
        for place, token in enumerate(text):
            counts[place, before, token] += 1
            before = token
    assert counts[0].sum() == ROWS >= 200_000
    expected = truth.double().numpy() * counts.sum(-1, keepdims=True)
    assert not counts[expected == 0].any(), "a token that the target never chooses"
    enough = expected >= 10  # a place that is hardly ever reached says nothing
    return float((np.where(enough, (counts - expected) ** 2, 0) / np.where(enough, expected, 1)).sum(-1).max())


@pytest.mark.parametrize("case", DRAFT_CHAINS)
def test_what_comes_out_is_drawn_from_the_target(case):
    assert worst_chi_square(case, SamplingParams(temperature=0.8)) < LIMIT


def test_truncation_counts_on_both_sides():
    assert worst_chi_square("near", SamplingParams(temperature=1.2, top_k=5, top_p=0.9, min_p=0.02)) < LIMIT


BROKEN = {
    "all accepted": ("accepts", lambda p, q, u: torch.ones_like(u, dtype=torch.bool)),
    "accepted by p alone": ("accepts", lambda p, q, u: u < p),
    "accepted if likelier": ("accepts", lambda p, q, u: p >= q),
    "replaced from p": ("residual", lambda p, q: p),
    "replaced from |p - q|": ("residual", lambda p, q: (p - q).abs()),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_does_not_get_through(rule, monkeypatch):
    name, broken = BROKEN[rule]
    monkeypatch.setattr(rejection, name, broken)
    assert worst_chi_square("far", SamplingParams(temperature=0.8)) > LIMIT


def test_the_same_distribution_is_always_accepted_and_a_disjoint_one_never():
    params = SamplingParams(temperature=0.8)
    assert set(run("the same", params)[2]) == {DRAFTS}
    assert set(run("disjoint", params)[2]) == {0}


def test_greedy_rows_are_as_without_speculation():
    for case in ("near", "certain"):
        first, gained, _, _ = run(case, SamplingParams(temperature=0))
        best = TARGET.argmax(-1).tolist()
        for before, text in zip(first[:100].tolist(), gained):
            for token in text:
                assert token == best[before]
                before = token


def test_distribution_is_what_sample_draws_from():
    params = SamplingParams(temperature=0.7, top_p=0.8)
    state, rows, lengths = state_of(params), np.arange(ROWS), np.ones(ROWS, np.int64)
    logits, tokens = TARGET[:1].expand(ROWS, -1), np.zeros((ROWS, 2), np.int32)
    counts = np.bincount(sample(logits, state, rows, lengths, tokens).numpy(), minlength=VOCAB)
    expected = ROWS * distribution(TARGET[:1], state, rows[:1], lengths[:1], tokens)[0].double().numpy()
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < LIMIT


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=None))


def test_an_engine_with_rejection_keeps_greedy_texts_and_repeats_itself(folder):
    """A draft that is the target itself is always accepted, and the same request always gets the same text."""
    settings = {"dtype": "float32", "device": "cpu", "backend": "reference", "batch_invariant": True}
    settings |= {"max_model_len": 96, "num_blocks": 60}
    plain = LLM(folder, **settings)
    greedy = SamplingParams(temperature=0, max_tokens=20, logprobs=1)
    warm = SamplingParams(temperature=1.0, max_tokens=20, seed=4, n=2, top_k=50, presence_penalty=0.5)
    truth = plain.generate([1, 2, 3], greedy, use_tqdm=False)[0].outputs[0]
    texts = []
    for more in ({}, {"max_num_batched_tokens": 9, "enable_prefix_caching": False}):
        config = {"model": folder, "num_speculative_tokens": 4, "adaptive": False, "verification": "rejection"}
        llm = LLM(folder, **settings | more, speculative_config=config)
        out = llm.generate([[1, 2, 3], [4] * 20], [greedy, warm], use_tqdm=False)
        assert (out[0].outputs[0].token_ids, out[0].outputs[0].logprobs) == (truth.token_ids, truth.logprobs)
        assert llm.stats().num_accepted_tokens == llm.stats().num_draft_tokens > 20
        texts.append([c.token_ids for c in out[1].outputs])
    llm = LLM(folder, **settings, **speculation(3, verification="rejection"))
    llm.engine.runner.proposer = Scripted(0.5, 384, {(1, 2, 3): [truth.token_ids]})
    assert llm.generate([1, 2, 3], greedy, use_tqdm=False)[0].outputs[0].token_ids == truth.token_ids


@settings(max_examples=15)
@given(st.data())
def test_whatever_is_drafted_the_rules_of_the_request_hold(folder, data):
    """Its text is another than without, but ends where it must, has no token that it must not have, and repeats itself.

    Greedy requests keep even their text, and so does a request that goes without drafts.
    """
    common = {"dtype": "float32", "device": "cpu", "backend": "reference", "batch_invariant": True}
    common |= {"max_model_len": 96, "block_size": 4}
    requests = data.draw(st.lists(st.tuples(any_prompt, any_params), min_size=1, max_size=4))
    prompts, params = [p for p, _ in requests], [s for _, s in requests]
    plain = LLM(folder, **common, num_blocks=100)
    truth = [gist(o) for o in plain.generate(prompts, params, use_tqdm=False)]
    known = {tuple(prompt): [c[2] for c in got] for prompt, (got, _) in zip(prompts, truth)}
    config = {"num_speculative_tokens": data.draw(st.integers(1, 8)), "adaptive": False, "verification": "rejection"}
    right = data.draw(st.sampled_from([None, 0.0, 0.7]))
    config |= {"model": folder} if right is None else {"method": "ngram"}
    few = {"num_blocks": 25 + data.draw(st.sampled_from([0, 3, 80])), "max_num_seqs": 5}
    texts = []
    for _ in range(2):
        llm = LLM(folder, **common, **few, speculative_config=config)
        if right is not None:
            llm.engine.runner.proposer = Scripted(right, 384, known)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert_drained(llm)
        texts.append([[c.token_ids for c in output.outputs] for output in outputs])
    assert texts[0] == texts[1]
    for output, own, (got, _) in zip(outputs, params, truth):
        if own.temperature == 0 or own.speculative is False:
            assert [c.token_ids for c in output.outputs] == [c[2] for c in got]
        assert len(output.outputs) == own.n
        for choice in output.outputs:
            ids, stops = choice.token_ids, set(own.stop_token_ids)
            assert own.min_tokens <= len(ids) <= own.max_tokens
            assert not stops & set(ids[:-1]) and (choice.finish_reason == "stop") == (ids[-1] in stops)
            assert choice.finish_reason == "stop" or len(ids) == own.max_tokens
            assert 300 not in ids or own.logit_bias is None
            assert own.logprobs is None or len(choice.logprobs) == len(ids)
            for word in own.bad_words_token_ids:
                assert all(tuple(ids[i : i + len(word)]) != word for i in range(len(ids)))
