"""Prompt lookup on the device offers what the reference's does, and says so."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.fast.runner import lookup
from quire.fast.runner.lookup import Lookup
from quire.fast.runner.results import Fetcher
from quire.fast.runner.rows import Rows
from quire.fast.runner.upload import Upload
from quire.reference.control.plan import SeqPlan, StepPlan, StepResult
from quire.reference.sampling import SamplerState
from quire.reference.speculation.ngram import NGram
from quire.reference.speculation.proposer import View
from tests.fast.drawn import COMPILED, DEVICE

ROWS, LONGEST = 5, 150


@settings(max_examples=300 if COMPILED else 40)
@given(
    texts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=LONGEST - 8), min_size=ROWS, max_size=ROWS),
    least=st.integers(1, 3),
    more=st.integers(0, 4),
    want=st.lists(st.integers(0, 6), min_size=ROWS, max_size=ROWS),
    bound=st.integers(0, 8),
)
def test_what_it_offers(texts: list[list[int]], least: int, more: int, want: list[int], bound: int) -> None:
    """``bound``: how much longer than they are the plan believes the rows to be. Pieces are small here."""
    ngram, device = NGram(least, least + more), torch.device(DEVICE)
    upload = Upload(device)
    rows = Rows(ROWS, LONGEST, 16, 10, upload)
    rows.tokens.fill_(9)  # what nobody wrote is no token of a text
    for row, text in enumerate(texts):
        rows.tokens[row, : len(text)] = torch.tensor(text, dtype=torch.int32)
        rows.row_len[row] = len(text)
    seqs = [
        SeqPlan(row, row, 1, len(text) + bound - 1, 1, 0, [], True, propose=want[row])
        for row, text in reversed([*enumerate(texts)])
    ]
    result = StepResult(0, [[] for _ in seqs])
    small = {"PIECE": lookup.PIECE, "BLOCK": lookup.BLOCK}
    lookup.PIECE, lookup.BLOCK = 64, 16
    try:
        Lookup(ngram, rows, upload, Fetcher(device), 6).draft(StepPlan(0, seqs=seqs))(result)
    finally:
        lookup.PIECE, lookup.BLOCK = small["PIECE"], small["BLOCK"]

    tokens = np.array([text + [9] * (LONGEST - len(text)) for text in texts], np.int32)
    for i, s in enumerate(seqs):
        length, drafts = len(texts[s.row]), []
        if s.propose:
            asked = np.array([s.row]), np.array([length]), np.array([s.propose])
            nowhere = np.zeros((0, 0), np.int64)
            drafts = ngram.propose(View(*asked, tokens, nowhere, SamplerState(1, 10)))[0].token_ids
        assert list(result.drafts.get(i, [])) == drafts
        behind = rows.tokens[s.row, length : length + s.propose].tolist()
        assert behind == (drafts or behind) and 9 not in behind, "whatever is verified is a token"
        assert (rows.tokens[s.row, length + s.propose :] == 9).all() and rows.tokens[s.row, :length].tolist() == texts[
            s.row
        ]
