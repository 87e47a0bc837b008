"""What the tests of the fast plane share: the device, tolerances by dtype, and random paged attention steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from hypothesis import strategies as st

from quire.fast.ops import AttnMeta, attn_meta

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED = torch.cuda.is_available()
GRAMMARS = find_spec("llguidance") is not None  # a bare machine with a GPU may have torch and little else
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Half a unit in the last place of the result and some roundings on the way; the interpreter truncates bfloat16.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers that are the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Compare with the float64 truth; NaN (an element that was never written) is never close."""
    tolerance = TOLERANCE[dtype] * factor
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance, rtol=tolerance)


@dataclass
class Case:
    """A random step: per sequence (queries, length after the step, whether it writes), and the model's shape.

    shared   leading positions that all sequences have in common, as far as they are past: their blocks are the same
    padding  rows after the last sequence's
    """

    seqs: list[tuple[int, int, bool]]
    kv_heads: int = 2
    share: int = 2
    dim: int = 32
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    dtype: torch.dtype = torch.float32
    shared: int = 0
    padding: int = 0
    seed: int = 0


@st.composite
def cases(draw: st.DrawFn, longest: int = 2000 if COMPILED else 100, most: int = 8 if COMPILED else 4) -> Case:
    def seq() -> tuple[int, int, bool]:
        length = draw(st.integers(1, longest))
        n = draw(st.one_of(st.just(1), st.integers(1, min(length, 9)), st.integers(1, length)))
        return n, length, draw(st.sampled_from([True, True, True, False]))

    return Case(
        seqs=[seq() for _ in range(draw(st.integers(1, most)))],
        kv_heads=draw(st.integers(1, 2)),
        share=draw(st.sampled_from([1, 2, 3, 4, 7, 8, 20])),
        block_size=draw(st.sampled_from([16, 32, 64])),
        window=draw(st.one_of(st.none(), st.integers(1, longest + 10))),
        soft_cap=draw(st.one_of(st.none(), st.floats(0.5, 20))),
        shared=draw(st.sampled_from([0, 0, 16, 40])),
        padding=draw(st.sampled_from([0, 0, 0, 3])),
        seed=draw(st.integers(0, 99)),
    )


@dataclass
class Step:
    """The tensors of a case. keys and values are what each sequence's cache ought to hold, [length, Hk, D] each."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    meta: AttnMeta
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def lay_out(case: Case) -> Step:
    """Blocks in random order; every slot that no sequence uses, the null block included, holds NaN.

    New keys of sequences that do not write are NaN too: nobody may read them. k and v are views into wider rows.
    """
    size, heads, dim = case.block_size, case.kv_heads, case.dim
    rng = random.Random(case.seed)
    num_blocks = sum(-(-length // size) for _, length, _ in case.seqs) + 8
    ids = list(range(1, num_blocks))
    rng.shuffle(ids)
    common = [ids.pop() for _ in range(case.shared // size)]
    common = common[: max((length - n) // size for n, length, _ in case.seqs)]
    cells = torch.full((2, num_blocks, size, heads, dim), torch.nan, dtype=case.dtype, device=DEVICE)
    cells[:, common] = randn(2, len(common), size, heads, dim, seed=case.seed + 1, dtype=case.dtype)
    tables, keys, values, new = [], [], [], []
    for s, (n, length, write) in enumerate(case.seqs):
        table = common[: (length - n) // size]
        known = len(table) * size
        table = table + [ids.pop() for _ in range(-(-length // size) - len(table))]
        content = randn(2, length, heads, dim, seed=case.seed + 10 + s, dtype=case.dtype)
        content[:, :known] = cells[:, table].flatten(1, 2)[:, :known]
        p = torch.arange(known, length - n if write else length, device=DEVICE)
        cells[:, torch.tensor(table, device=DEVICE)[p // size], p % size] = content[:, p]
        tables.append(table)
        keys.append(content[0])
        values.append(content[1])
        new.append(content[:, length - n :] if write else torch.full_like(content[:, length - n :], torch.nan))
    counts, lengths, write = ([seq[i] for seq in case.seqs] for i in range(3))
    meta = attn_meta(counts, lengths, tables, size, write=write, device=DEVICE)
    meta.slot, meta.padded = torch.cat([meta.slot, meta.slot.new_full((case.padding,), -1)]), case.padding > 0
    fresh = torch.cat([*new, torch.full_like(new[0][:, :1], torch.nan).expand(-1, case.padding, -1, -1)], dim=1)
    wide = torch.cat([fresh[0].flatten(1), fresh[1].flatten(1), torch.full_like(fresh[0].flatten(1), torch.nan)], dim=1)
    k, v, _ = wide.chunk(3, dim=1)
    q = randn(len(wide), heads * case.share, dim, seed=case.seed, dtype=case.dtype)
    q[sum(counts) :] = torch.nan
    shape = (-1, heads, dim)
    return Step(q, k.unflatten(1, shape[1:]), v.unflatten(1, shape[1:]), (cells[0], cells[1]), meta, keys, values)


def dense(case: Case, step: Step, scale: float) -> torch.Tensor:
    """The definition in float64, one sequence at a time: -> [T, Hq, D]; padding rows are zero."""
    out, row = torch.zeros(step.q.shape, dtype=torch.float64, device=DEVICE), 0
    for (n, length, _), keys, values in zip(case.seqs, step.keys, step.values):
        k, v = (x.double().repeat_interleave(case.share, 1) for x in (keys, values))
        scores = torch.einsum("nhd,lhd->hnl", step.q[row : row + n].double(), k) * scale
        if case.soft_cap is not None:
            scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
        p = torch.arange(length, device=DEVICE)
        at = p[length - n :, None]
        seen = p <= at
        if case.window is not None:
            seen &= p > at - case.window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[row : row + n] = torch.einsum("hnl,lhd->nhd", weights, v)
        row += n
    return out
