"""Prompt lookup: text repeats itself, so what followed these tokens the last time may follow again.

No model and no memory: the last few tokens of a sequence are looked for in the sequence itself, longest match first,
and what stood behind the latest match is offered. Good for copying, editing, code, JSON, answers that quote the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quire.reference.control.plan import StepPlan
from quire.reference.speculation.proposer import Draft, Ints, View


def longest_matches(history: npt.NDArray[np.int32], text: npt.NDArray[np.int32], longest: int) -> tuple[int, Ints]:
    """How many of the last tokens of ``history`` (at most ``longest``) occur in ``text``, with a token behind them.

    -> (that number, the places in ``text`` right behind each such occurrence, in rising order)
    """
    found, places = 0, np.arange(1, len(text))
    for n in range(1, min(longest, len(history)) + 1):
        closer = places[places >= n]
        closer = closer[text[closer - n] == history[-n]]
        if len(closer) == 0:
            break
        found, places = n, closer
    return found, places if found else places[:0]


@dataclass(frozen=True)
class NGram:
    """Offers what stood behind the latest occurrence of the longest match, from ``most`` down to ``least`` tokens."""

    least: int
    most: int

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """It has no K/V."""

    def follow(self, plan: StepPlan, tokens: npt.NDArray[np.int32], row_len: Ints) -> None:
        """It remembers nothing."""

    def propose(self, view: View) -> list[Draft]:
        return [
            Draft(self._lookup(view.tokens[row, :length], int(want)))
            for row, length, want in zip(view.rows, view.lengths, view.want)
        ]

    def _lookup(self, history: npt.NDArray[np.int32], want: int) -> list[int]:
        found, places = longest_matches(history, history, self.most)
        if found < self.least:
            return []
        latest = int(places[-1])
        draft: list[int] = history[latest : latest + want].tolist()
        while len(draft) < want:  # the match reaches up to the end: the text goes in circles, and so does the draft
            draft.append(draft[len(draft) - (len(history) - latest)])
        return draft
