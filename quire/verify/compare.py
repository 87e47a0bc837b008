"""How far two results of the same op may be apart.

An error is relative, |got - expected| / (|expected| + the row's root mean square), element by element: one wrong number
among 150,000 logits shows, and a number that happens to be close to zero is not held to its own size. Where one of the
two is NaN or infinite and the other is not, the error is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Both planes work on the same inputs, so all there is between them is the rounding within one op. In 16 bits that is
# the rounding of the result, and of one or two numbers on the way: up to half a unit in the last place each, on either
# side. Float32 results differ by the order in which up to some ten thousand terms are added.
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 4 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 4 * torch.finfo(torch.bfloat16).eps,
}
# The same ops on the same inputs are expected to repeat their result to the bit. A plane that adds up by atomics does
# not quite, and its errors have all layers to grow in.
REPEATED = 4
PIECE = 1 << 24  # numbers compared at once: bounds the memory it takes


@dataclass(frozen=True)
class Difference:
    """What went wrong: the part it was found in, how, and the row of the step's tokens where it is greatest."""

    what: str
    problem: str
    row: int


@dataclass(frozen=True)
class Check:
    """The largest error of each row of one result, [N] on its device, and which of the step's tokens the rows are."""

    what: str
    shapes: str
    tolerance: float
    errors: Tensor
    rows: npt.NDArray[np.int64]


def row_errors(got: Tensor, expected: Tensor) -> Tensor:
    """The largest error in each row of two results [N, ..., D] -> float32 [N]."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return torch.full((len(expected),), torch.inf, device=expected.device)
    if not got.numel():
        return torch.zeros(len(got), device=got.device)
    worst = []
    rows = max(1, PIECE // got[0].numel())
    for g, e in zip(got.split(rows), expected.split(rows)):
        g, e = g.float(), e.float()
        finite = e.isfinite()
        squares = torch.where(finite, e, 0).square().sum(-1, keepdim=True)
        size = (squares / finite.sum(-1, keepdim=True).clamp(min=1)).sqrt()
        error = (g - e).abs() / (e.abs() + size)
        same = (g == e) | (g.isnan() & e.isnan())
        # Against an infinity the quotient may be anything; what is not equal is then as wrong as can be.
        error = torch.where(finite & g.isfinite(), error, torch.inf).masked_fill(same, 0)
        worst.append(error.flatten(1).amax(1))
    return torch.cat(worst)


def differences(checks: Sequence[Check]) -> list[Difference]:
    """The checks that failed, in their order. The host waits for the device once if all is well."""
    checks = [check for check in checks if len(check.errors)]
    if not checks:
        return []
    worst = torch.stack([check.errors.amax() for check in checks]).tolist()
    found = []
    for check, error in zip(checks, worst):
        if error > check.tolerance:
            bad = int((check.errors > check.tolerance).sum())
            problem = f"error {error:.2g}, allowed {check.tolerance:.2g}; in {bad} of {len(check.errors)} rows"
            row = int(check.rows[int(check.errors.argmax())])
            found.append(Difference(check.what, f"{problem}; {check.shapes}", row))
    return found
