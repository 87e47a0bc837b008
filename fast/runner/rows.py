"""What lasts from step to step, one *row* per sequence, on the device: its tokens, block table, sampling parameters.

The host keeps only what it decides by: how many blocks a row has, and the parameters as they were given. It never
reads a row. A plan's differences (new sequences, forks, blocks that replace shared ones) are collected as *runs*, a run
being some consecutive numbers of one row, uploaded in one copy and put in place by one kernel per table.

One row more than there are sequences pads decode batches to the sizes for which there are graphs. Its block table is
all null blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.fast.runner.upload import Upload
from quire.fast.sampling import DeviceSamplerState
from quire.reference.control.params import PoolingParams
from quire.reference.control.plan import Fork, StepPlan
from quire.reference.pooling import PooledRow
from quire.reference.sampling import SamplerState

Run = tuple[int, int, Sequence[int]]  # row, first column, values


class Rows:
    """Tables for ``num_rows`` sequences of at most ``max_model_len`` tokens, and one row of padding.

    tokens        int32 [num_rows + 1, max_model_len + 1], on the device
    block_table   int32 [num_rows + 1, blocks of the longest sequence], on the device
    row_len       int32 [num_rows + 1], on the device: tokens of each row when it was last sampled
    params        sampling parameters, on the device; ``sampler`` holds them on the host
    num_blocks    int64 [num_rows + 1], on the host: entries of each block table
    pooled        rows that pool embeddings; these do not sample
    """

    def __init__(self, num_rows: int, max_model_len: int, block_size: int, vocab_size: int, upload: Upload) -> None:
        device, width = upload.device, -(-(max_model_len + 1) // block_size)
        self.block_size, self.padding = block_size, num_rows
        # One column more than max_model_len: the token after a full context is sampled before anybody stops it.
        self.tokens = torch.zeros(num_rows + 1, max_model_len + 1, dtype=torch.int32, device=device)
        self.block_table = torch.zeros(num_rows + 1, width, dtype=torch.int32, device=device)
        self.row_len = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
        self.sampler = SamplerState(num_rows + 1, vocab_size)
        self.params = DeviceSamplerState.like(self.sampler, device)
        self.num_blocks = np.zeros(num_rows + 1, np.int64)
        self.pooled: dict[int, PooledRow] = {}
        self._upload = upload

    def start_and_fork(self, plan: StepPlan) -> None:
        """Everything that a plan does to rows before blocks are swapped or copied."""
        for row in plan.ends:
            self.num_blocks[row] = 0
            self.pooled.pop(row, None)
        if not plan.starts and not plan.forks:
            return
        tokens: list[Run] = []
        changed = []
        for new in plan.starts:
            tokens.append((new.row, 0, new.token_ids))
            self.num_blocks[new.row] = 0
            if isinstance(new.params, PoolingParams):
                self.pooled[new.row] = PooledRow(new.params)
                continue
            changed.append(new.row)
            self.sampler.start(
                new.row, new.params, prompt_len=new.prompt_len, seed=new.seed, stream=new.stream, stop_ids=new.stop_ids
            )
        for fork in plan.forks:
            changed.append(fork.row)
            self.sampler.fork(fork.row, fork.parent_row, fork.params, fork.stream)
            if fork.token is not None:
                tokens.append((fork.row, fork.length, [fork.token]))
        self._copy_rows([fork for fork in plan.forks if fork.row != fork.parent_row])
        arrays = _as_arrays(tokens) + self.params.words(self.sampler, np.array(changed, np.int64))
        runs, values, where, words = self._upload.send(arrays)
        _put(self.tokens, runs, values)
        self.params.put(where, words)

    def _copy_rows(self, forks: list[Fork]) -> None:
        """Children begin as copies of their parents. (Behind a fork's length there is nothing that is ever read.)"""
        if not forks:
            return
        for fork in forks:
            self.num_blocks[fork.row] = -(-fork.length // self.block_size)
        children, parents = self._upload.send(
            [np.array([f.row for f in forks], np.int32), np.array([f.parent_row for f in forks], np.int32)]
        )
        for table in (self.tokens, self.block_table):
            table.index_copy_(0, children.long(), table.index_select(0, parents))

    def replace_blocks(self, runs: list[Run]) -> None:
        """Write entries of block tables: those gained by prompt chunks, and copies in place of shared blocks."""
        if runs:
            _put(self.block_table, *self._upload.send(_as_arrays(runs)))


def _as_arrays(runs: list[Run]) -> list[npt.NDArray[np.int32]]:
    """Runs as int32 [N, 4] (row, column, where its values begin, how many) and all values one after the other."""
    counts = np.fromiter((len(values) for _, _, values in runs), np.int32, len(runs))
    table = np.zeros((len(runs), 4), np.int32)
    table[:, 0] = [row for row, _, _ in runs]
    table[:, 1] = [column for _, column, _ in runs]
    table[1:, 2] = np.cumsum(counts[:-1])
    table[:, 3] = counts
    values = [np.asarray(values, np.int32) for _, _, values in runs]
    return [table, np.concatenate(values) if values else np.empty(0, np.int32)]


def _put(table: Tensor, runs: Tensor, values: Tensor) -> None:
    if len(runs):
        _put_runs[(len(runs),)](table, table.stride(0), runs, values, BLOCK=256, num_warps=2)


@triton.jit
def _put_runs(table, stride, runs, values, BLOCK: tl.constexpr):
    run = runs + 4 * tl.program_id(0)
    to = table + tl.load(run).to(tl.int64) * stride + tl.load(run + 1)
    source, count = values + tl.load(run + 2), tl.load(run + 3)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        tl.store(to + i, tl.load(source + i, mask=i < count), mask=i < count)
