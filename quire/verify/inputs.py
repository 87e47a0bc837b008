"""A step's inputs, worked out anew from the plans: what the runner built must be the same numbers.

The lockstep of the ops cannot see a runner that reads the wrong block: both planes would read it. So the block tables
are followed plan by plan on the host (that is cheap, and done at every step), and positions, slots and lengths of a
step to be verified are made from them. Token ids must be those of the rows; which tokens the model sampled is known to
the rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from quire.reference.control.plan import StepPlan
from quire.verify.compare import Difference


def wrong_inputs(
    plan: StepPlan,
    tables: Mapping[int, Sequence[int]],
    block_size: int,
    inputs: Any,
    tokens: Any,
    accepted: Mapping[int, int],
) -> list[Difference]:
    """Each kind of input that is not as planned.

    tables   row -> its blocks, after the plan's changes
    inputs   the runner's: ``ids``, ``positions`` and ``meta``; behind the plan's own entries may be padding
    tokens   int [rows, positions], the runner's after the step, NumPy or torch
    accepted  index in plan.seqs -> how many of its drafts were accepted; the others' places have other tokens now
    """
    rows, start, n, writes = np.array([(s.row, s.start, s.n, s.write) for s in plan.seqs], np.int64).T
    cu_q = np.concatenate([[0], np.cumsum(n)])
    seq = np.repeat(np.arange(len(rows)), n)  # of each token
    position = np.arange(cu_q[-1]) - cu_q[seq] + start[seq]
    width = -(-(start + n) // block_size)
    table = np.zeros((len(rows), int(width.max())), np.int64)
    for i, row in enumerate(rows.tolist()):
        table[i, : width[i]] = tables[row][: width[i]]
    used = np.arange(table.shape[1]) < width[:, None]
    slot = table[seq, position // block_size] * block_size + position % block_size
    tokens = torch.as_tensor(tokens)
    at = (torch.from_numpy(x).to(tokens.device) for x in (rows[seq], position))
    rejected = np.array([s.n_draft - accepted.get(i, 0) for i, s in enumerate(plan.seqs)])
    ids = np.where(position < (start + n - rejected)[seq], _numpy(tokens[tuple(at)]), _numpy(inputs.ids)[: cu_q[-1]])
    meta, first = inputs.meta, cu_q[:-1]
    planned = {  # name -> (what the runner made, what it should be, the token to which each entry belongs)
        "positions": (inputs.positions, position, None),
        "ids": (inputs.ids, ids, None),
        "slot": (meta.slot, np.where(writes[seq] != 0, slot, -1), None),
        "cu_q": (meta.cu_q[1:], cu_q[1:], first),
        "seq_len": (meta.seq_len, start + n, first),
        "block_table": (meta.block_table[:, : table.shape[1]], table, first),
    }
    found = []
    for name, (made, right, token) in planned.items():
        got = _numpy(made)[: len(right)]
        if name == "block_table":
            got = np.where(used, got, 0)
        if got.shape != right.shape:
            found.append(Difference(f"inputs, {name}", f"shape {list(got.shape)}, planned {list(right.shape)}", 0))
            continue
        wrong = np.argwhere(got != right)
        if len(wrong):
            # Token ids are as good as text: they do not get into the log.
            values = "" if name == "ids" else f": {got[tuple(wrong[0])]}, planned {right[tuple(wrong[0])]}"
            entry = int(wrong[0][0])
            problem = f"{len(wrong)} of {right.size} entries, the first at {wrong[0].tolist()}{values}"
            found.append(Difference(f"inputs, {name}", problem, entry if token is None else int(token[entry])))
    return found


def _numpy(x: Any) -> npt.NDArray[np.int64]:
    return x.cpu().numpy().astype(np.int64)
