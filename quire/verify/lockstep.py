"""Ops that run in lockstep: each call is answered by the plane under test, and repeated by the reference beside it.

A model that is handed a ``Lockstep`` in place of its ops computes what it always computes, because the plane's own
results are what it goes on with. The reference only ever sees inputs that the plane itself has made.

Attention is special: it writes. The step's K/V is in the cache already, put there by the pass that is being checked.
It is set aside, the plane's op writes and reads once more, its writing is looked at, the reference does the same, and
then what was there comes back, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.reference import ops as reference
from quire.reference.ops import AttnMeta
from quire.verify.compare import REPEATED, TOLERANCE, Check, row_errors

Ints = npt.NDArray[np.int64]


class Lockstep:
    """The names of an ops module. ``checks`` fills with one comparison per result, in the order of the calls.

    own     the ops under test
    names   ``weight_names`` of the model, to say where in it an op is
    rows    which of the step's tokens the first rows of every result are; rows behind these are padding
    meta    the step's metadata for the reference's attention; None: there will be none
    wanted  which tokens the rows are once the last layer has left the others out; None: it never does
    stage   what is put before the names of ops
    """

    def __init__(
        self,
        own: Any,
        names: Mapping[int, str],
        rows: Ints,
        meta: AttnMeta | None = None,
        *,
        wanted: Ints | None = None,
        stage: str = "",
    ) -> None:
        self.checks: list[Check] = []
        self._own, self._names, self._rows, self._meta, self._stage = own, names, rows, meta, stage
        self._wanted = rows if wanted is None else wanted
        self._calls, self._last = 0, "the beginning"
        if meta is not None:
            self._writes = torch.nonzero(meta.slot[: len(rows)] >= 0)[:, 0]
            self._written = rows[self._writes.cpu().numpy()]

    def __getattr__(self, name: str) -> Any:
        return partial(self._run, name, getattr(self._own, name), getattr(reference, name))

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, meta: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Both planes' ``attention``, with what they write compared and taken back."""
        assert self._meta is not None
        what = self._name("attention", (q, k, v))
        cells = self._meta.slot.clamp(min=0)  # where a row does not write, the null block stands in
        caches = [cache.flatten(0, 1) for cache in (k_cache, v_cache)]
        before = [cache.index_select(0, cells) for cache in caches]
        try:
            got = self._own.attention(q, k, v, k_cache, v_cache, meta, *args, **kwargs)
            for letter, cache, kept, new in zip("KV", caches, before, (k, v)):
                expected = new.index_select(0, self._writes).to(cache.dtype)
                written = cache.index_select(0, cells).index_select(0, self._writes)
                self._compare(f"{what}, {letter} in its slots", written, expected, self._written)
                kept = kept.index_select(0, self._writes)
                self._compare(f"{what}, {letter} of the first pass", kept, expected, self._written, factor=REPEATED)
            expected = reference.attention(q, k, v, k_cache, v_cache, self._meta, *args, **kwargs)
        finally:
            for cache, kept in zip(caches, before):
                cache.index_copy_(0, cells, kept)
        self._compare(what, got, expected, self._rows, (q, k, v))
        return got

    def _run(self, name: str, own: Any, definition: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        what = self._name(name, inputs)
        got = own(*args, **kwargs)
        expected = definition(*map(_plain, args), **{key: _plain(x) for key, x in kwargs.items()})
        if isinstance(expected, tuple):
            for i, pair in enumerate(zip(got, expected)):
                self._compare(f"{what}, result {i + 1} of {len(expected)}", *pair, self._rows, inputs)
        else:
            self._compare(what, got, expected, self._rows, inputs)
        return got

    def _name(self, op: str, inputs: Sequence[Tensor]) -> str:
        """ "linear, call 8 (layers.0.gate_up)": an op without weights is told by those before it."""
        weight = next((self._names[id(x)] for x in inputs if id(x) in self._names), None)
        place, self._last = (f"after {self._last}", self._last) if weight is None else (weight, weight)
        self._calls += 1
        return f"{self._stage}{op}, call {self._calls} ({place})"

    def _compare(
        self, what: str, got: Tensor, expected: Tensor, rows: Ints, inputs: Sequence[Tensor] = (), *, factor: int = 1
    ) -> None:
        rows = rows if len(expected) >= len(rows) else self._wanted
        errors = row_errors(got[: len(rows)], expected[: len(rows)])
        self.checks.append(Check(what, shapes_of(inputs, got), factor * TOLERANCE[expected.dtype], errors, rows))


def shapes_of(inputs: Sequence[Tensor], result: Tensor) -> str:
    """ "[3, 64] [192, 64] -> [3, 192] float32" """
    shapes = " ".join(str(list(x.shape)) for x in inputs)
    return f"{shapes} -> {list(result.shape)} {result.dtype}".strip().replace("torch.", "")


def weight_names(model: Any) -> dict[int, str]:
    """``id`` of each of a model's weights -> its name there, such as "lm_head" or "layers.3.qkv"."""
    names: dict[int, str] = {}
    for name, value in vars(model).items():
        if name == "cos_sin":  # all layers use it: it does not say where an op is
            continue
        parts = {name: value}
        if isinstance(value, list):
            parts = {f"{name}.{i}.{key}": x for i, layer in enumerate(value) for key, x in vars(layer).items()}
        for part, x in parts.items():
            if isinstance(x, Tensor):
                names.setdefault(id(x), part)
    return names


def _plain(x: Any) -> Any:
    """``x`` itself; of a weight in oneDNN's order, which the reference cannot read, the matrix as it was loaded."""
    return x.to_dense() if isinstance(x, Tensor) and x.is_mkldnn else x
