"""Compiles for an H200 what the fast plane launches, where there is no GPU: ``python -m tests.fast.offline FOLDER``.

The interpreter runs kernels that the compiler refuses: an arange whose size is no power of two, a value whose type
changes in a loop, tiles that need more shared memory than there is. Triton brings its compilers along, so all that is
missing is a driver that names the target; a launch then ends with the compiled kernel. Nothing is computed: tensors
hold what memory held by chance, and what the steps below need of them is put there by hand.

A line of JSON per kernel: its name and constants; the error, if there was one; its shared memory in bytes; whether it
is launched before its predecessor has ended, and whether it waits for that. FOLDER holds a tiny checkpoint.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from quire import SamplingParams
from quire.fast import device, ops
from quire.fast.ops import AttnMeta, invariant
from quire.fast.ops.linear import few_rows, gemv
from quire.fast.runner import ModelRunner
from quire.fast.runner.drafts import HostDrafts
from quire.reference.control.plan import Copy, Fork, NewSeq, SeqPlan, StepPlan
from quire.reference.models import load_model
from quire.reference.speculation.ngram import NGram
from quire.reference.speculation.suffix import Suffix

BF16, INT = torch.bfloat16, torch.int32
run = JITFunction.run
seen: set[str] = set()


class H200:
    """As much of a Triton driver as a compilation asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    constants = {name: str(x) for name, x in kwargs.items() if name.isupper()}
    about: dict[str, Any] = {"kernel": kernel.fn.__name__, "constants": constants, "error": None}
    about["overlaps"] = "launch_pdl" in kwargs
    try:
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        if compiled.hash in seen:
            return
        seen.add(compiled.hash)
        about |= {"shared": compiled.metadata.shared, "waits": "griddepcontrol.wait" in compiled.asm["ptx"]}
    except Exception as error:
        about["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(about))


def attend(attention: Any, dim: int, share: int, max_q: int, window: int | None = None) -> None:
    """Attention of 16-bit tensors; with a window scores are capped, too."""
    q, k = torch.empty(3, 2 * share, dim, dtype=BF16), torch.empty(3, 2, dim, dtype=BF16)
    cache = torch.empty(4, 16, 2, dim, dtype=BF16)
    meta = AttnMeta(torch.arange(4, dtype=INT), *torch.ones(2, 4, dtype=INT), torch.zeros(3).long(), max_q=max_q)
    meta.seq_len, meta.block_table = meta.seq_len[:3], torch.zeros(3, 4, dtype=INT)
    attention(q, k, k, cache, cache, meta, 0.1, window, 30.0 if window else None)


def all_ops() -> None:
    """Shapes of models that the steps of the tiny one do not have."""
    for dim, share, max_q in [(128, 4, 1), (128, 4, 8), (128, 8, 8), (64, 1, 64), (80, 7, 4), (96, 16, 4)]:
        attend(ops.attention, dim, share, max_q)  # 16, 32 and 64 rows
    attend(ops.attention, 256, 2, 32, window=100)
    for dim in (80, 128):
        attend(ops.attention, dim, 4, 128)
    attend(ops.attention, 256, 4, 128, window=100)
    for share, max_q in [(4, 1), (8, 8), (4, 128)]:
        attend(invariant.attention, 128, share, max_q)
    for rows in (1, 40, 200):
        invariant.linear(torch.empty(rows, 256, dtype=BF16), torch.empty(256, 256, dtype=BF16))
    for outputs, depth, bias in [(16384, 4096, False), (16390, 4096, True), (4096, 4096, True), (4100, 4104, False)]:
        few_rows(torch.empty(4, depth, dtype=BF16), torch.empty(outputs, depth, dtype=BF16), bias_of(outputs, bias))
    for depth in (1024, 2048, 3072):
        gemv(torch.empty(1, depth, dtype=BF16), torch.empty(64, depth, dtype=BF16), bias_of(64, depth == 1024))
    x, weight = torch.empty(3, 4096, dtype=BF16), torch.empty(4096, dtype=BF16)
    ops.layer_norm(x, weight, weight, 1e-5)
    ops.gelu_new(x)
    q, norm, cos_sin = torch.empty(3, 8, 80, dtype=BF16), torch.empty(80, dtype=BF16), torch.empty(9, 80)
    ops.qk_norm_rope(q, q, torch.zeros(3).long(), cos_sin, 1e-6, norm, norm)


def bias_of(outputs: int, there: bool) -> torch.Tensor | None:
    return torch.empty(outputs, dtype=BF16) if there else None


def all_steps(folder: str) -> None:
    """Steps of all kinds: prompts, decodes, forks and copies, drafts of all origins; greedy, and with everything."""
    names = {name: getattr(ops, name) for name in ops.__all__}
    names["embed"] = lambda ids, weight: weight.new_zeros(len(ids), weight.shape[1])  # ids are anything
    target, draft = (load_model(folder, dtype="bfloat16", device="cpu", ops=SimpleNamespace(**names)) for _ in "12")
    origins: list[dict[str, Any]] = [{"draft_model": draft}, {"proposer": NGram(2, 8)}, {"proposer": Suffix(2, 8)}]
    for origin in origins:
        runner = ModelRunner(
            target, max_num_seqs=8, max_model_len=256, block_size=16, device="cpu", dtype=BF16, most_drafts=5, **origin
        )
        runner.allocate_kv(20)
        if isinstance(runner.proposer, HostDrafts):
            runner.proposer.offered = {0: [1] * 5, 1: [1] * 2}
        for params in (SamplingParams(temperature=0), SamplingParams(top_p=0.9, presence_penalty=0.5)):
            some_steps(runner, params)
    rejection: Any = import_module("quire.fast.sampling.rejection")
    rejection._uniform_at(runner.rows.params, *torch.zeros(2, 4, dtype=INT))
    rejection.draw_from(torch.ones(4, 999), runner.rows.params, *torch.zeros(2, 4, dtype=INT), 3)


def some_steps(runner: ModelRunner, params: SamplingParams) -> None:
    def step(*seqs: tuple[int, int, int, int, int, list[int]], samples: bool = True, **changes: Any) -> None:
        """seqs: row, start, tokens, drafts among them, drafts asked for, new blocks"""
        plans = [SeqPlan(row, row, 0, at, n, k, new, samples, propose=ask) for row, at, n, k, ask, new in seqs]
        runner.forward(StepPlan(0, seqs=plans, **changes))
        for row, at, n, k, *_ in seqs:
            runner.rows.row_len[row] = at + n - k + 1
        runner.sample()

    starts = [NewSeq(row, row, [1] * 30, 30, params, 7, 0, (0,)) for row in (0, 1)]
    step((0, 0, 20, 0, 0, [1, 2]), (1, 0, 9, 0, 0, [3]), samples=False, starts=starts)
    step((0, 20, 10, 0, 5, []), (1, 9, 21, 0, 3, [4]))
    step((0, 30, 6, 5, 5, [5]), (1, 30, 3, 2, 2, [6]))
    step((0, 31, 1, 0, 0, []))
    fork, copy = Fork(2, 1, 2, 30, 1, params), Copy(4, 9, 2, 1)
    step((1, 32, 3, 2, 0, []), (2, 29, 1, 0, 0, []), forks=[fork], copies=[copy])


if __name__ == "__main__":
    driver.set_active(H200())  # type: ignore[arg-type]
    JITFunction.run = compile_only  # type: ignore[assignment,method-assign]
    device.OVERLAP["launch_pdl"], device._OVERLAPS = True, tl.constexpr(True)
    all_ops()
    all_steps(sys.argv[1])
