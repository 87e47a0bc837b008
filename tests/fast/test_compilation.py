"""Every kernel compiles, and none while requests wait: they do not depend on how many sequences or tokens a step has.

Triton compiles a kernel anew for every combination of constants, dtypes and, unless told otherwise, for integers that
are 1 or a multiple of 16. So numbers that differ from step to step must be none of these. After one mixed step and one
decode step of each size for which there is a graph, no step may ask for a kernel that is not there.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

from quire import SamplingParams
from quire.fast import ops
from quire.fast.ops import invariant
from quire.fast.runner import ModelRunner
from quire.fast.runner.graphs import ladder
from quire.reference.models import load_model
from quire.reference.speculation.ngram import NGram
from tests.conftest import ROOT
from tests.fast.drawn import COMPILED, DEVICE
from tests.fast.test_overlap import launched_and_kernels
from tests.runner_suite import BLOCK, Bench, new_seq
from tests.toys import tiny_checkpoint

ROWS = 40


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Any]]:
    """The kernels that were asked for so far, one entry for each that is compiled by itself.

    On a GPU these are the kernels that are compiled. Elsewhere kernels are not even interpreted here: the function with
    which Triton tells them apart is asked, for an H200.
    """
    seen: set[Any] = set()
    if COMPILED:
        monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda key, repr, **_: seen.add((repr, key)))
        yield seen
        return
    binders: dict[Any, Any] = {}
    backend = make_backend(GPUTarget("cuda", 90, 32))

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if kernel not in binders:
            jit = JITFunction(kernel.fn, do_not_specialize=kernel.kwargs["do_not_specialize"])
            binders[kernel] = create_function_from_signature(jit.signature, jit.params, backend)
        _, specialization, options = binders[kernel](*args, **kwargs)
        seen.add((kernel.fn.__name__, str(specialization), str(options)))

    monkeypatch.setattr(InterpretedFunction, "run", note)
    yield seen


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer=False, **shape)


@pytest.mark.parametrize("module", [ops, invariant], ids=["plain", "invariant"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_of_any_size_run_the_same_kernels(module: Any, dtype: str, checkpoint: Path, variants: set[Any]) -> None:
    names = {name: getattr(module, name) for name in module.__all__}
    if not COMPILED:  # token ids are what memory holds by chance
        names["embed"] = lambda ids, weight: weight.new_zeros(len(ids), weight.shape[1])
    load = partial(load_model, checkpoint, dtype=dtype, ops=SimpleNamespace(**names))
    bench = Bench(
        ModelRunner, lambda device: load(device=device), rows=ROWS, num_blocks=2000, max_model_len=256,
        dtype=getattr(torch, dtype), device=DEVICE,
    )  # fmt: skip
    kinds = [SamplingParams(temperature=0), SamplingParams(top_p=0.9), SamplingParams(presence_penalty=0.5)]

    def serve(kind: SamplingParams, prompts: list[int], chunk: int, decodes: list[int]) -> None:
        """Prompts of these lengths side by side, in chunks; then decode steps of so many sequences."""
        starts = [new_seq(row, [1] * n, kind) for row, n in enumerate(prompts)]
        for begin in range(0, max(prompts), chunk):
            seqs = [
                (row, begin, min(chunk, n - begin), begin + chunk >= n) if begin < n else (row, bench.known[row] - 1)
                for row, n in enumerate(prompts)
            ]
            bench.step(seqs, starts=starts)
            starts = []
        for count in decodes:
            bench.step([(row, bench.known[row] - 1) for row in range(count)])
        bench.step(ends=list(range(len(prompts))))

    for kind in kinds:
        serve(kind, [40] + [1] * (ROWS - 1), 40, ladder(ROWS))
    ready = set(variants)
    assert COMPILED or len(ready) > 15  # compiled ones may be there from other tests
    rng = random.Random(0)
    for kind in kinds * 3:
        prompts = [rng.randint(1, 30) for _ in range(rng.randint(1, ROWS))]
        serve(kind, prompts, rng.choice([2, 5, 11, 16, 30]), [rng.randint(1, len(prompts)) for _ in range(8)])
    assert sorted(variants - ready) == []


def test_steps_with_drafts_of_any_number_run_the_same_kernels(checkpoint: Path, variants: set[Any]) -> None:
    names = {name: getattr(ops, name) for name in ops.__all__}
    if not COMPILED:
        names["embed"] = lambda ids, weight: weight.new_zeros(len(ids), weight.shape[1])
    load = partial(load_model, checkpoint, dtype="bfloat16", ops=SimpleNamespace(**names))
    bench = Bench(
        partial(ModelRunner, most_drafts=3, proposer=NGram(1, 2)), lambda device: load(device=device), rows=ROWS,
        num_blocks=2000, max_model_len=256, dtype=torch.bfloat16, device=DEVICE,
    )  # fmt: skip

    def step(drafts: list[int], prompt: int = 0) -> None:
        """Rows 0, 1, ... with so many drafts, of which none counts; beside them perhaps a chunk of a prompt."""
        plans, begin = [], [bench.known[row] - 1 for row in range(len(drafts))]
        for row, (start, count) in enumerate(zip(begin, drafts)):
            plan = bench.seq(row, start, 1 + count)
            plan.n_draft, plan.propose = count, 3
            plans.append(plan)
        if prompt:
            chunk = bench.seq(ROWS - 1, 0, prompt, False)
            bench.step([*plans, chunk], starts=[new_seq(ROWS - 1, [1] * 99, kind)])
            bench.step(ends=[ROWS - 1])
        else:
            bench.step(plans)
        for row, start in enumerate(begin):
            bench.known[row] = start + 2
            keep = -(-(start + 1) // BLOCK)
            bench.free += bench.tables[row][keep:]
            del bench.tables[row][keep:]

    rng = random.Random(0)
    for kind in (SamplingParams(temperature=0), SamplingParams(top_p=0.9, presence_penalty=0.5)):
        bench.step([(row, 0, 9) for row in range(ROWS)], starts=[new_seq(row, [1] * 9, kind) for row in range(ROWS)])
        for drafts in ([3] * ROWS, [0] * ROWS, [0], [3], [1]):
            step(drafts)
        bench.step(ends=[ROWS - 1])
        step([3], 5)
        step([3] * (ROWS - 1), 5)
        ready = set(variants)
        assert COMPILED or len(ready) > 10
        for _ in range(12):
            drafts = [rng.randint(0, 3) for _ in range(rng.randint(1, ROWS - 1))]
            step(drafts)
            step(drafts, rng.randint(1, 40))
        assert sorted(variants - ready) == []
        bench.step(ends=list(range(ROWS - 1)))


@pytest.mark.skipif(COMPILED, reason="where there is a GPU all tests compile")
def test_every_kernel_compiles_for_an_h200(checkpoint: Path) -> None:
    """With its shared memory of 227 KiB per program; and what may come in early waits in its machine code, too."""
    command = [sys.executable, "-m", "tests.fast.offline", str(checkpoint)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [k for k in kernels if k["error"]] == []
    assert [k for k in kernels if k["shared"] > 227 << 10] == []
    assert [k for k in kernels if k["waits"] != k["overlaps"]] == []
    assert {k["kernel"] for k in kernels} == launched_and_kernels()[0].keys()
    rows = {k["constants"]["ROWS"] for k in kernels if k["kernel"] == "_attend_few"}
    assert rows == {"16", "32", "64"}
