"""What shadow verification calls equal: rounding, but not one wrong number; near-ties, but no other choice."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire import SamplingParams
from quire.reference.sampling import SamplerState, sample
from quire.verify.choice import wrong_choices
from quire.verify.compare import TOLERANCE, row_errors


@given(st.integers(0, 999), st.integers(1, 3000), st.sampled_from(list(TOLERANCE)), st.integers(-6, 6))
def test_one_wrong_number_in_a_row_shows_and_rounding_does_not(seed, width, dtype, exponent) -> None:
    rng = torch.Generator().manual_seed(seed)
    exact = torch.randn(3, width, generator=rng, dtype=torch.float64) * 10.0**exponent
    if dtype == torch.float16:
        exact = exact.clamp(-6e4, 6e4)
    expected = exact.to(dtype)
    rounded = (exact * (1 + torch.finfo(dtype).eps * torch.randn(exact.shape, generator=rng).clamp(-1, 1))).to(dtype)
    if exact.abs().min() > 1e-3:  # else numbers of float16 have fewer bits
        assert row_errors(rounded, expected).max() <= TOLERANCE[dtype]
    wrong = expected.clone()
    at = seed % width
    size = expected[1].float().square().mean().sqrt()
    wrong[1, at] = wrong[1, at].float() + 0.2 * (size + expected[1, at].float().abs())
    assert (row_errors(wrong, expected) > TOLERANCE[dtype]).tolist() == [False, True, False]


def test_what_is_not_finite_is_wrong_unless_it_is_meant() -> None:
    nan, inf = torch.nan, torch.inf
    expected = torch.tensor([[1.0, inf], [1.0, nan], [1.0, 2.0], [inf, 2.0], [0.0, 0.0], [0.0, 0.0]])
    got = torch.tensor([[1.0, inf], [1.0, nan], [1.0, nan], [1e38, 2.0], [0.0, 0.0], [0.0, 1e-30]])
    assert row_errors(got, expected).tolist() == [0, 0, inf, inf, 0, inf]
    assert row_errors(got[:, :1], expected).tolist() == [inf] * 6


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, 1, 2, 20]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
)


@given(params, st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_near_tie_may_fall_either_way_and_nothing_else(params, seed, dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    vocab = 60
    logits = (3 * torch.randn(1, vocab, generator=rng)).to(dtype)
    state = SamplerState(2, vocab)
    state.start(1, params, prompt_len=2, seed=seed, stream=0, stop_ids=())
    rows, lengths, tokens = np.array([1]), np.array([5]), np.full((2, 8), 3)

    def verdict(token: int) -> bool:
        return not wrong_choices(logits, np.array([token]), state, rows, lengths, tokens, {})

    def choice(of: torch.Tensor) -> int:
        return int(sample(of, state, rows, lengths, tokens))

    assert verdict(choice(logits.float()))
    slightly = logits.float() + torch.finfo(dtype).eps * torch.randn(1, vocab, generator=rng).clamp(-1, 1)
    assert verdict(choice(slightly))
    if dtype == torch.float32 or params.top_p == 1:  # else rounding moves much probability over the border
        help_ = 2.0 * torch.eye(vocab)
        lost = [token for token in range(0, vocab, 5) if choice(logits.float() + help_[token]) != token]
        assert lost and not any(verdict(token) for token in lost)
    assert not verdict(-1) and not verdict(vocab)
