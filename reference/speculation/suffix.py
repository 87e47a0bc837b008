"""Suffix lookup: prompt lookup over the outputs of recent requests as well (Oliaro et al. 2024, "SuffixDecoding").

Requests resemble each other: agents repeat themselves, forms are filled in again and again. The last tokens of a
sequence are looked for in its own text and in what others were answered lately; the place with the longer match wins,
the sequence's own if they are equal. Where several places match alike, each drafted token is the one that most of them
continue with, and those that do not are left out for the next. That is a walk down a suffix tree, without the tree: the
texts are one array of bounded length, searched with NumPy (60 µs for 65,536 tokens), and what is oldest falls out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quire.reference.control.plan import StepPlan
from quire.reference.speculation.ngram import longest_matches
from quire.reference.speculation.proposer import Draft, Ints, View

MEMORY = 1 << 16  # tokens of recent outputs
GAP = -1  # between two outputs; no token


@dataclass
class Suffix:
    """Needs a match of ``least`` tokens, compares ``most`` at most, and remembers ``memory`` tokens of outputs."""

    least: int
    most: int
    memory: int = MEMORY
    recent: npt.NDArray[np.int32] = field(default_factory=lambda: np.full(1, GAP, np.int32))
    prompt_len: dict[int, int] = field(default_factory=dict)  # of the live rows

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """It has no K/V."""

    def follow(self, plan: StepPlan, tokens: npt.NDArray[np.int32], row_len: Ints) -> None:
        """Keep the outputs of the rows that end. (A preempted one is kept as far as it got, and again at its end.)"""
        for row in plan.ends:
            output = tokens[row, self.prompt_len.pop(row, row_len[row]) : row_len[row]]
            if len(output) > self.least:
                self.recent = np.concatenate([self.recent, output, [GAP]], dtype=np.int32)[-self.memory :]
        for new in plan.starts:
            self.prompt_len[new.row] = new.prompt_len
        for fork in plan.forks:
            self.prompt_len[fork.row] = self.prompt_len[fork.parent_row]

    def propose(self, view: View) -> list[Draft]:
        return [
            Draft(self._lookup(view.tokens[row, :length], int(want)))
            for row, length, want in zip(view.rows, view.lengths, view.want)
        ]

    def _lookup(self, history: npt.NDArray[np.int32], want: int) -> list[int]:
        own, places = longest_matches(history, history, self.most)
        text, found = history, own
        if own < self.most:
            others, other_places = longest_matches(history, self.recent, self.most)
            if others > own:
                text, places, found = self.recent, other_places, others
        return likeliest(text, places, want) if found >= self.least else []


def likeliest(text: npt.NDArray[np.int32], places: Ints, want: int) -> list[int]:
    """Up to ``want`` tokens that ``text`` most often has from ``places`` on; of equally frequent ones the latest."""
    draft: list[int] = []
    while len(draft) < want:
        places = places[places < len(text)]
        following = text[places][::-1]  # the latest first
        following = following[following != GAP]
        if len(following) == 0:
            break
        values, first, counts = np.unique(following, return_index=True, return_counts=True)
        token = int(values[np.lexsort((first, -counts))[0]])
        draft.append(token)
        places = places[text[places] == token] + 1
    return draft
