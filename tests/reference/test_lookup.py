"""Proposals without a model: prompt lookup and suffix lookup, against the plainest definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire import ConfigError, EngineConfig
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import Fork, NewSeq, StepPlan
from quire.reference.sampling import SamplerState
from quire.reference.speculation.config import SpeculativeConfig
from quire.reference.speculation.ngram import NGram, longest_matches
from quire.reference.speculation.proposer import View
from quire.reference.speculation.suffix import Suffix, likeliest

few = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def propose(proposer, history: list[int], want: int) -> list[int]:
    tokens = np.array([history], np.int32)
    zero = np.zeros(1, np.int64)
    view = View(zero, zero + len(history), zero + want, tokens, np.zeros((1, 1), np.int64), SamplerState(1, 10))
    (draft,) = proposer.propose(view)
    return draft.token_ids


@given(few, few, st.integers(1, 5))
def test_longest_matches_are_those_of_a_plain_search(history, text, longest):
    found, places = longest_matches(np.array(history), np.array(text), longest)
    fits = {
        n: [p for p in range(n, len(text)) if text[p - n : p] == history[len(history) - n :]]
        for n in range(1, min(longest, len(history)) + 1)
    }
    best = max((n for n in fits if fits[n]), default=0)
    assert (found, places.tolist()) == (best, fits.get(best, []))


@given(few, st.integers(1, 3), st.integers(1, 8))
def test_prompt_lookup_goes_on_as_the_latest_match_did(history, least, want):
    draft = propose(NGram(least, 4), history, want)
    found, places = longest_matches(np.array(history), np.array(history), 4)
    if found < least:
        assert draft == []
    else:
        text = [*history, *draft]
        assert draft == text[places[-1] : places[-1] + want] and len(draft) == want  # in circles if need be


def test_prompt_lookup_by_hand():
    assert propose(NGram(2, 4), [1, 2, 3, 9, 1, 2], 3) == [3, 9, 1]
    assert propose(NGram(3, 4), [1, 2, 3, 9, 1, 2], 3) == []
    assert propose(NGram(1, 4), [5, 6, 5, 6, 5], 5) == [6, 5, 6, 5, 6]
    assert propose(NGram(1, 4), [1, 7, 3, 1, 8, 3, 1], 1) == [8]  # the longer match, not the last one


def test_most_of_the_matches_decide_and_ties_are_for_the_latest():
    text = np.array([1, 5, 1, 6, 2, 1, 6, 3, 1])
    assert likeliest(text, np.array([1, 3, 6]), 3) == [6, 3, 1]  # 6 twice; behind it 2 and 3, the latter later
    assert likeliest(text, np.array([9]), 3) == []


def test_suffix_lookup_remembers_what_others_were_answered():
    suffix = Suffix(least=2, most=4, memory=20)
    tokens, row_len = np.zeros((3, 12), np.int32), np.zeros(3, np.int64)
    params = SamplingParams()
    suffix.follow(StepPlan(0, starts=[NewSeq(0, 0, [8, 8], 2, params, 0, 0, ())]), tokens, row_len)
    suffix.follow(StepPlan(1, forks=[Fork(1, 0, 1, 2, 1, params)]), tokens, row_len)
    tokens[0, :7], tokens[1, :6], row_len[:2] = [8, 8, 1, 2, 3, 4, 5], [8, 8, 1, 2, 3, 9], (7, 6)
    assert propose(suffix, [6, 1, 2, 3], 2) == []
    suffix.follow(StepPlan(2, ends=[0]), tokens, row_len)
    assert propose(suffix, [6, 1, 2, 3], 9) == [4, 5]  # to the end of that output and not beyond
    suffix.follow(StepPlan(3, ends=[1]), tokens, row_len)
    assert propose(suffix, [6, 1, 2, 3], 2) == [9]  # equally often, but later
    assert propose(suffix, [6, 1, 2, 7, 1, 2], 1) == [7]  # as long a match in its own text comes first
    assert propose(suffix, [8, 8], 1) == []  # prompts are nobody else's business
    for row in range(3):
        suffix.follow(StepPlan(4 + row, starts=[NewSeq(row, row, [1], 1, params, 0, 0, ())]), tokens, row_len)
        tokens[row, :8], row_len[row] = [1, *range(20 + 10 * row, 27 + 10 * row)], 8
        suffix.follow(StepPlan(7 + row, ends=[row]), tokens, row_len)
    assert len(suffix.recent) == 20 and propose(suffix, [1, 2, 3], 1) == []  # what is oldest falls out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"speculative_config": {"method": "magic"}},
            r"speculative_config.method='magic': unknown choice. Choose one of",
        ),
        ({"speculative_config": {"metod": "ngram"}}, "Did you mean method"),
        ({"speculative_config": {"num_speculative_tokens": 0}}, "integer from 1 to 32"),
        ({"speculative_config": {"num_speculative_tokens": True}}, "integer from 1 to 32"),
        ({"speculative_config": {"prompt_lookup_min": 9}}, "more than prompt_lookup_max=8"),
        ({"speculative_config": {"method": "draft_model"}}, "no draft model"),
        ({"speculative_config": {"method": "ngram", "model": "pocket-draft"}}, "has no meaning for 'ngram'"),
        ({"speculative_config": {"model": "pocket-draft", "prompt_lookup_max": 4}}, "has no meaning for 'draft_model'"),
        ({"speculative_config": {"verification": "hope"}}, "shared_noise, rejection"),
        ({"speculative_config": {"adaptive": 1}}, "neither True nor False"),
        ({"speculative_config": "ngram"}, "not a mapping"),
        ({"speculative_config": {"model": "a"}, "speculative_model": "b"}, "has 'model' as well"),
        ({"num_speculative_tokens": 3}, "no proposer is named"),
        ({"speculative_config": {"method": "ngram", "verification": "rejection"}, "verify": 0.5}, "what was drafted"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**arguments)


def test_both_spellings_come_to_the_same():
    new = {"model": "pocket-draft", "num_speculative_tokens": 3}
    older = {"speculative_model": "pocket-draft", "num_speculative_tokens": 3}
    expected = SpeculativeConfig(method="draft_model", **new)
    assert EngineConfig(speculative_config=new).speculation == EngineConfig(**older).speculation == expected
    assert EngineConfig(speculative_config=expected).speculation == expected
    assert EngineConfig(speculative_model="[ngram]", num_speculative_tokens=3).speculation == SpeculativeConfig(
        method="ngram", num_speculative_tokens=3
    )
    assert EngineConfig().speculation is None
