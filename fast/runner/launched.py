"""What the runner knows of a step between its forward pass and its sampling, which may have to wait for a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from quire.fast.runner.inputs import Inputs
from quire.fast.runner.sampling import Places
from quire.reference.control.plan import StepPlan
from quire.reference.sampling import Positions

Ints = npt.NDArray[np.int64]


@dataclass
class Launched:
    """A forward pass that has not been sampled yet.

    rows, start, end, n_draft   of plan.seqs, int64 [S], on the host; ``end`` is behind the last draft. Bounds of those
                                planned ahead
    cu_q             query offsets int32 [S + 1], on the host
    which            the plan.seqs that sample
    given            drafts that the rows do not have yet, by the step's tokens, -1 elsewhere; empty: there are none
    inputs, hidden   of the forward pass; hidden [T, H], and T may be padded
    places           of the positions that are sampled; in a decode step padding follows
    at               int32, where these are among the step's tokens; None: they are the first so many
    wanted           ``at``, if these are the only tokens of which there are hidden states
    graph            a decode step's key: sequences, tokens and a bound on the tokens of one sequence; None: none
    """

    plan: StepPlan
    rows: Ints
    start: Ints
    end: Ints
    n_draft: Ints
    cu_q: npt.NDArray[np.int32]
    which: list[int]
    given: npt.NDArray[np.integer]
    inputs: Inputs | None = None
    hidden: Tensor | None = None
    places: Places | None = None
    at: Tensor | None = None
    wanted: Tensor | None = None
    graph: tuple[int, int, int] | None = None

    @property
    def sampled(self) -> Ints:
        """Which of the step's tokens are sampled."""
        drafts = self.n_draft[self.which]
        return Positions.of(self.rows[self.which], self.cu_q[1:][self.which] - 1 - drafts, drafts).length

    @property
    def hidden_rows(self) -> Ints:
        """Which of the step's tokens the first rows of ``hidden`` are."""
        return np.arange(self.cu_q[-1], dtype=np.int64) if self.wanted is None else self.sampled


def looked_up(drafts: list[list[int]], n_draft: Ints, cu_q: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Drafts of the sequences that have some, spread over the step's tokens; -1 elsewhere. None: empty."""
    given = np.full(int(cu_q[-1]) if drafts else 0, -1, np.int32)
    for end, tokens in zip(cu_q[1:][n_draft > 0].tolist(), drafts):
        given[end - len(tokens) : end] = tokens
    return given
