"""The sampler chooses what the reference's chooses, except between scores that are equal to within rounding."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quire import SamplingParams
from quire.fast.sampling import DeviceSamplerState, sample
from quire.fast.sampling.truncation import CAPACITY, thresholds
from quire.reference.control import philox
from quire.reference.sampling import SamplerState
from quire.reference.sampling import sample as reference_sample
from quire.reference.sampling.processors import process
from quire.reference.sampling.truncation import thresholds as reference_thresholds
from tests.fast.drawn import COMPILED, DEVICE

TOLERANCE = 1e-4


@dataclass
class Batch:
    """Rows with parameters of their own. spread: of the logits; steps: they are multiples of 1/steps."""

    params: list[SamplingParams]
    vocab: int = 1000
    spread: float = 3.0
    steps: int | None = None
    history: int = 40
    seed: int = 0
    dtype: torch.dtype = torch.float32
    rows: list[int] = field(init=False)

    def build(self) -> tuple[torch.Tensor, SamplerState, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        count = len(self.params)
        state = SamplerState(count + 3, self.vocab)
        rows = rng.permutation(count + 3)[:count].astype(np.int64)
        lengths = rng.integers(2, self.history + 1, count)
        tokens = np.full((count + 3, self.history + 1), self.vocab + 7, np.int32)  # what may not be read would be seen
        for row, length, params in zip(rows, lengths, self.params):
            tokens[row, :length] = rng.integers(0, min(self.vocab, 50), length)
            state.start(
                row, params, prompt_len=int(rng.integers(1, length)), seed=int(rng.integers(2**63)) * 2 + 1,
                stream=int(rng.integers(2**32)), stop_ids=(),
            )  # fmt: skip
        logits = torch.from_numpy(rng.normal(0, self.spread, (count, self.vocab)).astype(np.float32))
        if self.steps is not None:
            logits = torch.round(logits * self.steps) / self.steps
        return logits.to(self.dtype).float(), state, rows, lengths, tokens


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, -1, 1, 2, 20, 300]),
    top_p=st.sampled_from([1.0, 1.0, 0.99, 0.7, 0.1]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    presence_penalty=st.sampled_from([0.0, 0.0, -0.5]),
)
batches = st.builds(
    Batch,
    params=st.lists(params, min_size=1, max_size=40 if COMPILED else 3),
    vocab=st.sampled_from([5, 1000, 4096, 5003] + [151936] * COMPILED),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    steps=st.sampled_from([None, None, 2]),
    history=st.sampled_from([3, 80, 200]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


@given(batch=batches)
@settings(max_examples=200 if COMPILED else 12)
@example(batch=Batch([SamplingParams(temperature=0), SamplingParams(temperature=1)]))
@example(batch=Batch([SamplingParams(temperature=0.6, top_p=0.9)], vocab=20_000, spread=1.0))
@example(batch=Batch([SamplingParams(top_k=50, top_p=0.9, repetition_penalty=1.2)], vocab=5003))
def test_chooses_what_the_reference_chooses(batch: Batch) -> None:
    logits, state, rows, lengths, tokens = batch.build()
    expected = reference_sample(logits, state, rows, lengths, tokens)
    device = logits.to(DEVICE, batch.dtype)
    where = [torch.from_numpy(x).to(DEVICE) for x in (rows, lengths, tokens)]
    some = [params for params in batch.params if params.temperature > 0]
    needed = {
        "penalised": bool(state.penalised[rows].any()),
        "truncated": any(p.top_k > 0 or p.top_p < 1 or p.min_p > 0 for p in some),
    }
    got = sample(device, DeviceSamplerState.like(state, DEVICE), *where, **needed)
    assert torch.equal(device.float().cpu(), logits), "the raw logits are left as they were"
    for i in np.flatnonzero(got.cpu().numpy() != expected.numpy()):
        assert_equal_up_to_rounding(batch, i, int(got[i]), int(expected[i]), logits, state, rows, lengths, tokens)


def assert_equal_up_to_rounding(batch, i, got, expected, logits, state, rows, lengths, tokens) -> None:  # type: ignore
    """The two tokens' perturbed scores are a rounding apart, or one of them is at the edge of what is kept."""
    scores = process(logits, state, rows, lengths, tokens)[i].double()
    row = rows[i]
    assert state.temperature[row] > 0, "greedy rows are exact"
    scores /= float(state.temperature[row])
    noise = philox.gumbel_rows(state.seed[row : row + 1], state.stream[row : row + 1], lengths[i : i + 1], batch.vocab)
    perturbed = scores + torch.from_numpy(noise[0])
    near = abs(perturbed[got] - perturbed[expected]) < TOLERANCE
    one = slice(row, row + 1)
    edges = [
        reference_thresholds(scores[None].float(), state.top_k[one], state.top_p[one] + d, state.log_min_p[one])
        for d in (-1e-5, 0, 1e-5)
        if state.top_p[row] + d <= 1
    ]
    at_edge = any(abs(scores[token] - float(edge)) < TOLERANCE for token in (got, expected) for edge in edges)
    assert near or at_edge, (batch, i, got, expected, perturbed[got], perturbed[expected])


@pytest.mark.parametrize("vocab", [CAPACITY * 3])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=3000),
        SamplingParams(top_p=0.5),
        SamplingParams(top_k=10, top_p=0.5),
        SamplingParams(min_p=0.2, top_p=0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", ["normal", "flat", "one peak", "masked"])
def test_thresholds(params: SamplingParams, shape: str, vocab: int) -> None:
    """Also where the list of candidates overflows: equal logits, many tokens to keep."""
    batch = Batch([params], vocab=vocab, spread=0.0 if shape == "flat" else 2.0)
    logits, state, rows, *_ = batch.build()
    if shape == "one peak":
        logits[0, 77] = 60.0
    if shape == "masked":
        logits[0, 5:] = -torch.inf
    expected = reference_thresholds(logits, state.top_k[rows], state.top_p[rows], state.log_min_p[rows])
    kept = thresholds(logits.to(DEVICE), DeviceSamplerState.like(state, DEVICE), torch.from_numpy(rows).to(DEVICE))
    got = kept.lowest.cpu()
    kept, kept_by_reference = (int((logits >= x[:, None]).sum()) for x in (got, expected))
    assert abs(kept - kept_by_reference) <= 2, (got, expected)


def test_an_empty_batch() -> None:
    state = DeviceSamplerState.like(SamplerState(2, 10), DEVICE)
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert sample(torch.empty(0, 10, device=DEVICE), state, nothing, nothing, torch.zeros(2, 4)).shape == (0,)


def test_masks() -> None:
    batch = Batch([SamplingParams(temperature=t) for t in (0.0, 1.0)], vocab=300)
    logits, state, rows, lengths, tokens = batch.build()
    allowed = torch.zeros(2, 300, dtype=torch.bool)
    allowed[:, [3, 100, 299]] = True
    expected = reference_sample(logits, state, rows, lengths, tokens, masks=dict(enumerate(allowed)))
    where = [torch.from_numpy(x).to(DEVICE) for x in (rows, lengths, tokens)]
    got = sample(logits.to(DEVICE), DeviceSamplerState.like(state, DEVICE), *where, masks=allowed.to(DEVICE))
    assert torch.equal(got.cpu(), expected)
