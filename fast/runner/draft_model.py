"""A small model as the drafter, on the device: between a verification and the next one nothing waits for the host.

Its K/V lives in a cache of its own under the target's block tables, as on the reference
(``quire.reference.speculation.draft_model``). What is different: when drafting is launched, the host does not know yet
how many of the last drafts were accepted. The device does, in ``row_len``, and everything starts from there.

So a *round* begins with a window: the positions from the sequence's last certain token up to the last that this step
can have brought. That is one more token than the step verified, and the logits behind the one that is in fact the last
give the first draft. The window also computes anew what drafting had computed there, some of it for tokens that
were rejected since. Then comes one token per pass. A sequence that wants fewer drafts than others repeats its last pass
meanwhile. The window and a pass are a CUDA graph each; the drafts stand in the rows in the end, where the verification
finds them, and the host only hears how many there are.

It samples with the target's noise, and without the few requests' rules: no text can change by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.fast.ops import copy_blocks
from quire.fast.runner.graphs import EXACT, Graphs, coarse, doubling, smallest
from quire.fast.runner.inputs import Inputs, build_inputs
from quire.fast.runner.results import Fetched, Fetcher
from quire.fast.runner.rows import Rows
from quire.fast.runner.sampling import Wants
from quire.fast.runner.swap import Caches, SwapSpace, allocate
from quire.fast.runner.upload import Upload, aligned
from quire.fast.sampling import distribution, draw_from, sample
from quire.reference.control.block_tables import BlockTables
from quire.reference.control.philox import DRAFT
from quire.reference.control.plan import SeqPlan, StepPlan, StepResult
from quire.reference.models import Model

Ints = npt.NDArray[np.int64]
CATCH_UP = 2048  # tokens per forward pass of what has come before the window


@dataclass(frozen=True)
class OnDevice(Sequence[int]):
    """Some drafts that are on the device: their number is known, and their tokens when somebody asks for them."""

    fetched: Fetched  # int32 [sequences, drafts]
    sequence: int
    places: range

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return OnDevice(self.fetched, self.sequence, self.places[at])
        return int(self.fetched.wait()[0][self.sequence, self.places[at]])


class DraftModel:
    """Drafts with ``model``, which has the target's vocabulary, on the rows of the target's runner.

    known     leading positions whose K/V is right, by row, or fewer; the window begins there at the latest
    current   rows that had a round since they were last planned: there K/V is right up to the next plan's start
    full      by block: it was full of right K/V when its row had a round; worth something to whoever shares it
    """

    def __init__(
        self,
        model: Model,
        rows: Rows,
        upload: Upload,
        fetcher: Fetcher,
        graphs: Graphs,
        *,
        most: int,
        dtype: torch.dtype,
        rejection: bool = False,
    ) -> None:
        self.model, self.rows, self.dtype, self.rejection = model, rows, dtype, rejection
        self._upload, self._fetcher, self._graphs = upload, fetcher, graphs
        num_rows, device = rows.padding, upload.device
        self._sizes, self._tokens = doubling(num_rows), coarse(num_rows * (most + 2))
        self._longest = 1 << (most + 1).bit_length()  # of windows
        self._inputs = torch.zeros(5 * aligned(num_rows + 1), dtype=torch.int32, device=device)
        self._offsets = torch.arange(max(num_rows + 1, most), dtype=torch.int32, device=device)
        self._nothing = torch.zeros(num_rows, dtype=torch.int32, device=device)
        # Where the latest draft of each row stands, and where its last one will.
        self._at, self._last = torch.zeros(2, aligned(num_rows), dtype=torch.int32, device=device)
        rows.row_len[rows.padding] = 2
        self.known = np.zeros(num_rows, np.int64)
        self.current: set[int] = set()
        self._probs: dict[int, Tensor] = {}
        self.full = self.host_full = np.zeros(0, bool)
        self.caches: Caches = []
        self._swap_space: SwapSpace | None = None
        self._tables = BlockTables(rows.block_size)

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """A second cache of the same number of blocks."""
        size, device = self.rows.block_size, self._upload.device
        self.caches = allocate(self.model.config, num_blocks, size, self.dtype, device)
        self._swap_space = SwapSpace(self.caches, num_host_blocks) if num_host_blocks else None
        self.full, self.host_full = np.zeros(num_blocks, bool), np.zeros(num_host_blocks + 1, bool)

    # ------------------------------------------------------------------------------------- following the target's K/V

    def follow(self, plan: StepPlan) -> list[list[int]]:
        """Do to its own cache what the plan does to the target's, in the same order."""
        self._tables.apply(plan)
        for new in plan.starts:
            self.known[new.row] = 0
            self.current.discard(new.row)
        for fork in plan.forks:
            self.known[fork.row] = min(self.known[fork.parent_row], fork.length)
            self.current.discard(fork.row)
        if plan.swap_out:
            assert self._swap_space is not None
            self._swap_space.move_out(plan.swap_out, self._send([s.device for s in plan.swap_out]))
            for device, host in plan.swap_out:
                self.host_full[host] = self.full[device]
        if plan.copies:
            copy_blocks(self.caches, self._send([c.src for c in plan.copies]), self._send([c.dst for c in plan.copies]))
            self.full[[c.dst for c in plan.copies]] = False
        if plan.swap_in:
            assert self._swap_space is not None
            self._swap_space.move_in(plan.swap_in, self._send([s.device for s in plan.swap_in]))
            for device, host in plan.swap_in:
                self.full[device] = self.host_full[host]
        started = {new.row for new in plan.starts}
        for s in plan.seqs:
            if s.row in started:
                self._share(s)
                continue
            if s.row in self.current:
                self.current.remove(s.row)
                self.known[s.row] = s.start
            if s.new_blocks:
                self.full[s.new_blocks] = False
        return []

    def _share(self, s: SeqPlan) -> None:
        """A row begins, perhaps with K/V from the prefix cache or the swap space: some of it may be known here too."""
        size = self.rows.block_size
        old = s.start // size if s.write else -(-(s.start + s.n) // size)
        self.full[s.new_blocks[old:]] = False
        lacking = np.flatnonzero(~self.full[s.new_blocks[:old]])
        self.known[s.row] = size * (int(lacking[0]) if len(lacking) else old)

    def _send(self, ids: list[int]) -> Tensor:
        return self._upload.send([np.array(ids, np.int32)])[0]

    # ------------------------------------------------------------------------------------------------------- drafting

    @torch.inference_mode()
    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        asked = [i for i, s in enumerate(plan.seqs) if s.propose]
        if not asked:
            return _nothing_offered
        seqs = [plan.seqs[i] for i in asked]
        # The window begins at the last token that is certain; the step computed that, and n_draft behind it.
        fields = [(s.row, s.start + s.n - 1 - s.n_draft, s.propose, s.n_draft + 2) for s in seqs]
        row, begin, want, n = np.array(fields, np.int64).T
        self._catch_up(row, np.minimum(self.known[row], begin), begin)
        drafts = self._launch_round(row, begin, want, n)
        for s, known in zip(seqs, (begin + 1).tolist()):
            self.known[s.row] = known
            self.full[self._tables.rows[s.row][: known // self.rows.block_size]] = True
        self.current.update(row.tolist())
        fetched = self._fetcher.fetch([drafts])
        offers = {i: OnDevice(fetched, k, range(s.propose)) for k, (i, s) in enumerate(zip(asked, seqs))}
        return partial(_offer, offers)

    def _launch_round(self, row: Ints, begin: Ints, want: Ints, n: Ints) -> Tensor:
        """-> the drafts, int32 [sequences, drafts]"""
        count, most = len(row), int(want.max())
        size, tokens = smallest(self._sizes, count), smallest(self._tokens, int(n.sum()))
        padded = np.zeros((5, aligned(size + 1)), np.int32)
        padded[0], padded[2] = self.rows.padding, 1
        padded[:4, :count] = row, begin, want, np.ones(count)
        padded[4, 1 : count + 1] = np.cumsum(n)
        padded[4, count + 1 :] = n.sum()  # rows of padding have no window
        (inputs,) = self._upload.send([padded], into=self._inputs)
        wants = Wants.of(self.rows.sampler, row)
        if self.rejection:
            probs: list[Tensor] = []
            self._window(size, tokens, wants, probs)
            for _ in range(most - 1):
                self._pass(size, wants, probs)
            self._probs |= zip(row.tolist(), torch.stack(probs, 1))
        else:
            self._graphs.run(("window", size, tokens, wants), partial(self._window, size, tokens, wants))
            for _ in range(most - 1):
                self._graphs.run(("pass", size, wants), partial(self._pass, size, wants))
        rows = inputs[0, :count].long()
        places = self.rows.row_len[rows][:, None] + self._offsets[:most]
        return self.rows.tokens[rows[:, None], places.clamp(max=self.rows.tokens.shape[1] - 1).long()]

    def probs(self, rows: Ints) -> list[Tensor | None]:
        """For rejection sampling: what the latest drafts of each row were drawn from, float32 [drafts, V]."""
        return [self._probs.get(row) for row in rows.tolist()]

    def _window(self, size: int, tokens: int, wants: Wants, probs: list[Tensor] | None = None) -> None:
        """The window and the first draft of each row, from what is in the input buffer."""
        (row, begin, want, writes), cu_q = self._fields(size)
        # Written where they belong by kernels: a copy between them would keep the next one from coming in early.
        length = torch.index_select(self.rows.row_len, 0, row, out=self._at[:size])
        torch.add(length, want - 1, out=self._last[:size])
        nothing, padded = self._nothing[:size], size > 1 or tokens > EXACT
        inputs = build_inputs(self.rows, row, begin, writes, nothing, cu_q, tokens, self._longest, padded=padded)
        final = (cu_q[:size] + length - 1 - begin).clamp(max=tokens - 1)
        self._draw(self._forward(inputs, final), row, self._at[:size], wants, probs)

    def _pass(self, size: int, wants: Wants, probs: list[Tensor] | None = None) -> None:
        """One more draft of each row; of one that wants no more, its last one once again."""
        (row, _, _, writes), _ = self._fields(size)
        at = self._at[:size]
        torch.minimum(at + 1, self._last[:size], out=at)
        nothing, offsets = self._nothing[:size], self._offsets[: size + 1]
        inputs = build_inputs(self.rows, row, at - 1, writes, nothing, offsets, size, 1)
        self._draw(self._forward(inputs), row, at, wants, probs)

    def _fields(self, size: int) -> tuple[Tensor, Tensor]:
        """The input buffer: rows, begins, drafts wanted and whether to write [4, size]; and cu_q [size + 1]."""
        fields = self._inputs[: 5 * aligned(size + 1)].view(5, -1)
        return fields[:4, :size], fields[4, : size + 1]

    def _draw(self, hidden: Tensor, row: Tensor, at: Tensor, wants: Wants, probs: list[Tensor] | None) -> None:
        """Draw a draft behind each row's position ``at`` - 1, and put it there.

        ``probs``: draw for rejection sampling, and append what is drawn from.
        """
        where, kinds = (self.rows.params, row, at, self.rows.tokens), asdict(wants)
        logits = self.model.logits(hidden)
        if probs is None:
            chosen = sample(logits, *where, **kinds)
        else:
            probs.append(distribution(logits, *where, **kinds))
            chosen = draw_from(probs[-1], self.rows.params, row, at, DRAFT)
        self.rows.tokens[row.long(), at.long()] = chosen.int()

    def _catch_up(self, row: Ints, begin: Ints, end: Ints) -> None:
        """Compute the positions from ``begin`` to ``end`` - 1 of each row, in pieces."""
        begin = begin.copy()
        while (missing := end - begin).any():
            room = CATCH_UP
            n = np.zeros_like(missing)
            for i in np.flatnonzero(missing).tolist():
                n[i] = min(room, missing[i])
                room -= n[i]
            which = np.flatnonzero(n)
            cu_q = np.append(0, np.cumsum(n[which]))
            ones = np.ones(len(which), np.int64)
            rows, start, writes, nothing, offsets, last = self._upload.send(
                [row[which], begin[which], ones, ones * 0, cu_q, cu_q[-1:] - 1]
            )
            inputs = build_inputs(self.rows, rows, start, writes, nothing, offsets, int(cu_q[-1]), CATCH_UP)
            self._forward(inputs, last)
            begin += n

    def _forward(self, inputs: Inputs, wanted: Tensor | None = None) -> Tensor:
        i = inputs
        return self.model.forward(i.ids, i.positions, self.caches, i.meta, wanted)  # type: ignore[arg-type]


def _nothing_offered(result: StepResult) -> None:
    pass


def _offer(offers: dict[int, OnDevice], result: StepResult) -> None:
    result.drafts |= offers
