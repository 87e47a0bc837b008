"""What a proposer is shown, and what it offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quire.reference.control.plan import StepPlan
from quire.reference.sampling import SamplerState

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """The rows for which drafts are wanted, R of them.

    rows         int64 [R], in the runner
    lengths      int64 [R], how many tokens each has
    want         int64 [R], drafts wanted at most, 1 or more
    tokens       int [num_rows, ...], all rows' tokens; a proposer may write its drafts behind a row's length
    block_table  int64 [num_rows, ...], all rows' blocks; ``want`` positions behind the K/V computed so far are reserved
                 for a draft model
    sampler      the rows' sampling parameters and noise
    """

    rows: Ints
    lengths: Ints
    want: Ints
    tokens: npt.NDArray[np.int32]
    block_table: Ints
    sampler: SamplerState


class Draft(NamedTuple):
    """Tokens offered for one row, and for rejection sampling the distributions they were drawn from.

    probs: float32 [len(token_ids), V], or None: the tokens are certain ("one-hot"), as a lookup's are.
    """

    token_ids: list[int]
    probs: Tensor | None = None


class Proposer(Protocol):
    """Offers drafts. The runner shows it every plan before the forward pass, and asks it after sampling."""

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """The runner's KV cache has so many blocks now."""

    def follow(self, plan: StepPlan, tokens: npt.NDArray[np.int32], row_len: Ints) -> None:
        """A plan is about to be applied; ``tokens`` and ``row_len`` are the runner's, from before it."""

    def propose(self, view: View) -> list[Draft]:
        """One draft per row of the view, possibly empty."""
