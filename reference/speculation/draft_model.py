"""A small model as the proposer. It samples like the target: same parameters, same noise, position by position.

Its K/V lives in tensors of its own under the target's block tables: block 7 of the one is block 7 of the other. So it
needs no allocator, and copy-on-write, swapping and preemption are the same copies, done twice. What it must know in
addition is how far its own K/V is right, for it does not run with the target: when it is asked, it first computes what
has come since (the prompt, or a token or two) and then drafts, one forward pass per token.

    known[row]      leading positions whose K/V belongs to the row's tokens
    drafted[row]    tokens drafted behind those, with K/V; as many of them as were accepted count as known next time
    full[block]     the block was full of right K/V when its row was last asked: worth something to whoever shares it
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference.control import philox
from quire.reference.control.plan import SeqPlan, StepPlan
from quire.reference.inputs import ragged_inputs, to_device
from quire.reference.kv_cache import Caches, allocate, allocate_host, swap_blocks
from quire.reference.models import Model
from quire.reference.ops.cache import copy_blocks
from quire.reference.sampling import distribution, draw, sample
from quire.reference.speculation.proposer import Draft, Ints, View

CATCH_UP = 2048  # tokens per forward pass of what has come since


class DraftModel:
    """Drafts with ``model``, which must have the target's vocabulary and reach as far as it.

    ``rejection``: its drafts are drawn with noise of their own, and it says from what, for rejection sampling.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_num_seqs: int,
        block_size: int,
        device: torch.device | str,
        dtype: torch.dtype,
        rejection: bool = False,
    ) -> None:
        self.model = model
        self.rejection = rejection
        self.block_size = block_size
        self.device = torch.device(device)
        self.dtype = dtype
        self.known = np.zeros(max_num_seqs, np.int64)
        self.drafted: dict[int, list[int]] = defaultdict(list)
        self.caches: Caches = []
        self.host_caches: Caches = []
        self.full = self.host_full = np.zeros(0, bool)

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None:
        """A second cache of the same number of blocks."""
        config, size, dtype = self.model.config, self.block_size, self.dtype
        self.caches = allocate(config, num_blocks, size, dtype, self.device)
        self.host_caches = allocate_host(config, num_host_blocks, size, dtype, self.device.type == "cuda")
        self.full, self.host_full = np.zeros(num_blocks, bool), np.zeros(num_host_blocks + 1, bool)

    @torch.inference_mode()
    def follow(self, plan: StepPlan, tokens: npt.NDArray[np.int32], row_len: Ints) -> None:
        """Do to its own cache what the plan does to the target's, in the same order."""
        for row in [new.row for new in plan.starts]:
            self.known[row] = 0
            self.drafted.pop(row, None)
        for fork in plan.forks:
            self.known[fork.row] = min(self.known[fork.parent_row], fork.length)
            self.drafted.pop(fork.row, None)
        if plan.swap_out:
            swap_blocks(self.caches, self.host_caches, plan.swap_out, out=True)
            for device, host in plan.swap_out:
                self.host_full[host] = self.full[device]
        if plan.copies:
            src, dst, _, _ = np.array(plan.copies, np.int64).T
            copy_blocks(self.caches, to_device(src, self.device), to_device(dst, self.device))
            self.full[dst] = False
        if plan.swap_in:
            swap_blocks(self.caches, self.host_caches, plan.swap_in, out=False)
            for device, host in plan.swap_in:
                self.full[device] = self.host_full[host]
        started = {new.row for new in plan.starts}
        for s in plan.seqs:
            if s.row in started:
                self._share(s)
            elif s.new_blocks:
                self._keep(s)

    def _share(self, s: SeqPlan) -> None:
        """A row begins, perhaps with K/V from the prefix cache or the swap space: some of it may be known here too."""
        size = self.block_size
        old = s.start // size if s.write else -(-(s.start + s.n) // size)
        self.full[s.new_blocks[old:]] = False
        lacking = np.flatnonzero(~self.full[s.new_blocks[:old]])
        self.known[s.row] = size * (int(lacking[0]) if len(lacking) else old)

    def _keep(self, s: SeqPlan) -> None:
        """New blocks replace those behind ``start``: K/V drafted in there is gone."""
        end = -(-s.start // self.block_size) * self.block_size
        self.full[s.new_blocks] = False
        known = self.known[s.row] = min(int(self.known[s.row]), end)
        del self.drafted[s.row][end - known :]

    def propose(self, view: View) -> list[Draft]:
        rows, lengths, want = view.rows, view.lengths, view.want
        self._take_up(view)
        scores = self._forward(view, rows, self.known[rows], lengths)
        drafts: list[list[int]] = [[] for _ in rows]
        probs: list[list[Tensor]] = [[] for _ in rows]
        active = np.arange(len(rows))
        for count in range(1, int(want.max()) + 1):
            behind = lengths[active] + count - 1
            if self.rejection:
                weights = distribution(scores, view.sampler, rows[active], behind, view.tokens)
                chosen = draw(weights, view.sampler, rows[active], behind, philox.DRAFT).cpu().numpy()
                for i, own in zip(active.tolist(), weights):
                    probs[i].append(own)
            else:
                chosen = sample(scores, view.sampler, rows[active], behind, view.tokens).cpu().numpy()
            view.tokens[rows[active], behind] = chosen
            going = []
            for i, token in zip(active.tolist(), chosen.tolist()):
                drafts[i].append(token)
                rules = view.sampler.rules[rows[i]]
                assert rules is not None
                if count < want[i] and token not in rules.stop_ids:  # nothing comes behind the end
                    going.append(i)
            if not going:
                break
            active = np.array(going)
            behind = lengths[active] + count
            scores = self._forward(view, rows[active], behind - 1, behind)
        self._remember(view, drafts)
        return [Draft(draft, torch.stack(own) if own else None) for draft, own in zip(drafts, probs)]

    def _take_up(self, view: View) -> None:
        """Count what was accepted as known. A row's last token always remains: its logits are needed."""
        for row, length in zip(view.rows.tolist(), view.lengths.tolist()):
            known = int(self.known[row])
            for token in self.drafted.pop(row, ()):
                if known >= length or view.tokens[row, known] != token:
                    break
                known += 1
            self.known[row] = min(known, length - 1)

    def _remember(self, view: View, drafts: list[list[int]]) -> None:
        for row, length, draft in zip(view.rows.tolist(), view.lengths.tolist(), drafts):
            self.known[row] = length
            self.drafted[row] = draft[:-1]  # the last one was drawn, but not computed
            self.full[view.block_table[row, : length // self.block_size]] = True

    @torch.inference_mode()
    def _forward(self, view: View, rows: Ints, start: Ints, end: Ints) -> Tensor:
        """Compute the positions from ``start`` to ``end`` - 1 of each row -> float32 logits behind the last, [R, V]."""
        while (end - start).sum() > max(CATCH_UP, len(rows)):  # in pieces, the rows' last tokens all in the last one
            room, part = CATCH_UP, start.copy()
            for i, missing in enumerate((end - 1 - start).tolist()):
                part[i] += min(room, missing)
                room -= min(room, missing)
            which = np.flatnonzero(part > start)
            inputs, _ = self._inputs(view, rows[which], start[which], part[which])
            self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.meta)
            start = part
        inputs, cu_q = self._inputs(view, rows, start, end)
        last = to_device(cu_q[1:] - 1, self.device)
        hidden = self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.meta, last)
        return self.model.logits(hidden).float()

    def _inputs(self, view: View, rows: Ints, start: Ints, end: Ints):  # type: ignore[no-untyped-def]
        return ragged_inputs(rows, start, end, view.tokens, view.block_table, self.block_size, self.device)
