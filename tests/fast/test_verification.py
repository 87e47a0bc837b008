"""Verification on the device keeps what the reference's keeps, by shared noise and by rejection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import SamplingParams
from quire.fast.runner.rows import Rows
from quire.fast.runner.sampling import Places, Wants, choose, choose_by_rejection
from quire.fast.runner.upload import Upload
from quire.reference.sampling import Positions, distribution, reject, verify
from tests.fast.drawn import COMPILED, DEVICE

VOCAB, LONGEST = 11, 40

params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([-1, -1, 3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
)


@dataclass
class Drafted:
    """Sequences with drafts of which about half agree, in rows of both planes."""

    rows: Rows
    row: np.ndarray
    length: np.ndarray
    n_draft: np.ndarray
    tokens: np.ndarray
    logits: torch.Tensor
    limits: list[int]

    @classmethod
    def draw(cls, data: st.DataObject) -> Drafted:
        rng = np.random.default_rng(data.draw(st.integers(0, 999)))
        count = data.draw(st.integers(1, 4))
        upload = Upload(torch.device(DEVICE))
        rows = Rows(count + 2, LONGEST, 4, VOCAB, upload)
        row = rng.permutation(count + 2)[:count].astype(np.int64)
        length = rng.integers(2, 12, count)
        n_draft = np.array([data.draw(st.integers(0, 6)) for _ in range(count)], np.int64)
        tokens = rng.integers(0, VOCAB, (count + 3, LONGEST + 1)).astype(np.int32)
        for r, n in zip(row, length):
            one = data.draw(params)
            rows.sampler.start(int(r), one, prompt_len=int(n) - 1, seed=int(rng.integers(2**63)), stream=1, stop_ids=())
        rows.params.put(*upload.send(rows.params.words(rows.sampler, row)))
        logits = torch.from_numpy(rng.normal(0, 3, (int((n_draft + 1).sum()), VOCAB)).astype(np.float32))
        drafted = cls(rows, row, length, n_draft, tokens, logits, (n_draft + 1).tolist())
        drafted.limits = [data.draw(st.integers(1, limit)) for limit in drafted.limits]
        return drafted

    def places(self) -> Places:
        at = Positions.of(self.row, self.length, self.n_draft)
        first = np.append(at.first, len(at.row))
        return Places(*(torch.from_numpy(x.astype(np.int32)).to(DEVICE) for x in (at.row, at.length, first)), most=7)

    def upload(self) -> Any:
        self.rows.tokens.copy_(torch.from_numpy(self.tokens))
        return self.logits.to(DEVICE), torch.tensor(self.limits, dtype=torch.int32, device=DEVICE)

    def assert_kept(self, chosen: torch.Tensor, accepted: torch.Tensor, expected: tuple[Any, Any]) -> None:
        """The rows hold the tokens gained, and what comes back says so."""
        gained, counts = expected
        assert accepted.tolist() == counts
        first = np.cumsum(self.n_draft + 1) - self.n_draft - 1
        for i, own in enumerate(gained):
            assert chosen[first[i] : first[i] + len(own)].tolist() == own
            assert self.rows.tokens[self.row[i], self.length[i] : self.length[i] + len(own)].tolist() == own
            assert self.rows.row_len[self.row[i]] == self.length[i] + len(own)

    def masks(self) -> dict[int, Any]:
        """Masks that allow everything, and end where a sequence's positions stop to count."""
        return {i: np.ones((limit, VOCAB), bool) for i, limit in enumerate(self.limits)}


@given(st.data())
@settings(max_examples=200 if COMPILED else 8)
def test_shared_noise_keeps_what_the_reference_keeps(data: st.DataObject) -> None:
    d = Drafted.draw(data)
    everything = (d.logits, d.rows.sampler, d.row, d.length, d.tokens)
    for _ in range(int(d.n_draft.max())):  # each time one more of the drafts is right
        for row, length, own in zip(d.row, d.length, verify(*everything, d.n_draft)[0]):
            d.tokens[row, length : length + len(own)] = own
    for row, length, n in zip(d.row, d.length, d.n_draft.tolist()):  # up to some place
        at = length + data.draw(st.integers(0, n))
        d.tokens[row, at] = (d.tokens[row, at] + 1) % VOCAB
    expected = verify(*everything, d.n_draft, d.masks())
    logits, limit = d.upload()
    got = choose(logits, d.rows, d.places(), Wants.of(d.rows.sampler, d.row), limit)
    d.assert_kept(*got, expected)


@given(st.data())
@settings(max_examples=200 if COMPILED else 8)
def test_rejection_keeps_what_the_reference_keeps(data: st.DataObject) -> None:
    d = Drafted.draw(data)
    at = Positions.of(d.row, d.length, d.n_draft)
    q = distribution(d.logits + 0.5, d.rows.sampler, at.row, at.length, d.tokens)
    q = (q + q.roll(1, -1)) / 2  # near
    parts = q.split((d.n_draft + 1).tolist())
    probs = [part if data.draw(st.booleans()) else None for part in parts]
    expected = reject(d.logits, d.rows.sampler, d.row, d.length, d.tokens, d.n_draft, probs, d.masks())
    logits, limit = d.upload()
    wants = Wants.of(d.rows.sampler, d.row)
    on_device = [None if part is None else part.to(DEVICE) for part in probs]
    d.assert_kept(*choose_by_rejection(logits, d.rows, d.places(), wants, d.n_draft, on_device, limit), expected)
