"""Masks and biases on the device are, bit for bit, what ``quire.reference.sampling.processors`` makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import SamplingParams
from quire.fast.runner.rules import RowRules
from quire.reference.sampling import SamplerState
from quire.reference.sampling.processors import process
from tests.fast.drawn import DEVICE

VOCAB = 7  # few tokens, so that words do get completed and masks do leave nothing
LONGEST = 6
tokens = st.integers(0, VOCAB - 1)
beyond = st.integers(0, VOCAB + 2)  # ids that no token has are allowed, and mean nothing


@st.composite
def rules(draw: st.DrawFn) -> SamplingParams:
    params = SamplingParams(
        temperature=0,
        allowed_token_ids=draw(st.none() | st.lists(beyond, min_size=1, max_size=4)),
        logit_bias=draw(st.none() | st.dictionaries(beyond, st.floats(-100, 100, width=32), max_size=3)),
        min_tokens=draw(st.sampled_from([0, 0, 2, 4])),
        max_tokens=10,
    )
    words = draw(st.lists(st.lists(beyond, min_size=1, max_size=3), max_size=8))
    return replace(params, bad_words_token_ids=words)


@st.composite
def batches(draw: st.DrawFn) -> list[dict[str, Any]]:
    return [
        {
            "params": draw(rules() | st.just(SamplingParams(temperature=0))),
            "prompt": draw(st.lists(tokens, min_size=1, max_size=3)),
            "output": draw(st.lists(tokens, max_size=LONGEST)),
            "stop_ids": tuple(draw(st.lists(tokens, max_size=VOCAB))),
            "mask": draw(st.none() | st.lists(st.booleans(), max_size=VOCAB)),
        }
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(batch=batches(), dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99))
@settings(max_examples=300)
def test_scores_are_those_of_the_reference(batch: list[dict[str, Any]], dtype: torch.dtype, seed: int) -> None:
    count = len(batch)
    rows = np.random.default_rng(seed).permutation(count + 2)[:count].astype(np.int64)
    state = SamplerState(count + 2, VOCAB)
    history = np.full((count + 2, LONGEST + 4), VOCAB + 5, np.int32)
    lengths = np.array([len(b["prompt"]) + len(b["output"]) for b in batch])
    masks = {i: np.array(b["mask"], bool) for i, b in enumerate(batch) if b["mask"] is not None}
    for row, b in zip(rows, batch):
        prompt_len = len(b["prompt"])
        state.start(int(row), b["params"], prompt_len=prompt_len, seed=0, stream=0, stop_ids=b["stop_ids"])
        known = b["prompt"] + b["output"]
        history[row, : len(known)] = known
    logits = torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = process(logits.float(), state, rows, lengths, history, masks)
    device, raw = RowRules(state, torch.device(DEVICE)), logits.to(DEVICE)
    for given_masks in (masks, {i: torch.from_numpy(mask).to(DEVICE) for i, mask in masks.items()}):
        got = device.apply(raw, rows, lengths, torch.from_numpy(history).to(DEVICE), given_masks)
        assert torch.equal(got.float().cpu(), expected)
        assert torch.equal(raw.cpu(), logits), "the raw logits are left as they were"


def test_a_row_takes_on_the_rules_of_its_next_sequence() -> None:
    state = SamplerState(2, VOCAB)
    device = RowRules(state, torch.device(DEVICE))
    history, logits = torch.zeros(2, 8, dtype=torch.int32, device=DEVICE), torch.zeros(1, VOCAB, device=DEVICE)
    one = np.array([1])
    for allowed in ([3], [2, 4], None):
        params = SamplingParams(allowed_token_ids=allowed)
        state.start(1, params, prompt_len=1, seed=0, stream=0, stop_ids=())
        scores = device.apply(logits, one, one, history, {})
        assert scores[0].isfinite().nonzero()[:, 0].tolist() == (allowed or list(range(VOCAB)))
    state.start(0, SamplingParams(allowed_token_ids=[5]), prompt_len=1, seed=0, stream=0, stop_ids=())
    state.fork(1, 0, SamplingParams(allowed_token_ids=[5]), stream=1)
    assert device.apply(logits, one, one, history, {})[0].isfinite().nonzero()[:, 0].tolist() == [5]
