"""Exercises of notebook 10: a kernel that is right on every shape, and what bounds its speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quire.learn.answers import Wrong, call, function, number, one_of


def rms_norm(answer: Any) -> str:
    """10-a: rms_norm(x [T, H], weight [H], eps), compared with float64 on shapes and values chosen to hurt."""
    f = function(answer)
    cases = (
        (1, 64, torch.float32, 1.0, "one row of 64"),
        (3, 64, torch.float32, 1.0, "three rows: does each program find its own?"),
        (2, 100, torch.float32, 1.0, "a width that is no power of two: what do the lanes beyond it load?"),
        (2, 64, torch.float32, 1e-4, "small numbers, for which eps counts: it is added to the mean, not the sum"),
        (2, 1, torch.float32, 1.0, "a width of one"),
        (4, 96, torch.float16, 300.0, "float16, whose squares exceed 65,504: in which type are they added up?"),
    )
    for rows, width, dtype, size, about in cases:
        rng = torch.Generator().manual_seed(width)
        x = (torch.randn(rows, width, generator=rng) * size).to(dtype)
        weight = torch.rand(width, generator=rng).to(dtype) + 0.5
        exact = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
        got = call(f, x, weight, 1e-5)
        if not isinstance(got, torch.Tensor) or got.shape != x.shape or got.dtype != dtype:
            raise Wrong(f"A tensor {list(x.shape)} of {dtype} is wanted, as x is.")
        tolerance = 4e-3 if dtype == torch.float16 else 2e-5
        if not torch.allclose(got.double(), exact, atol=tolerance, rtol=tolerance):
            raise Wrong(f"It is wrong for {about}.")
    return "Right on every case. Each of them has caught a kernel that looked finished."


def balance(answer: Any) -> str:
    """10-b: tokens per step at which a bfloat16 weight matrix takes as long to multiply as to read, on an H200."""
    right = 989e12 / 4.8e12  # each weight: 2 bytes read, 2 operations per token
    given = number(answer)
    if abs(given - right) <= 2:
        return "Right: about 206. Below that a step takes as long as reading the weights, however few tokens it has."
    raise one_of(
        float(round(given)),
        {
            float(round(right / 2)): "How many operations are there per weight and token? It is multiplied and added.",
            float(round(right * 2)): "How many bytes has a bfloat16?",
            float(round(right * 4)): "A weight has two bytes, and takes two operations per token.",
        },
        "Not yet. Per weight: bytes read, once; operations, per token. When does 989·10¹² of these per second take as "
        "long as 4.8·10¹² of those?",
    )


CHECKS: dict[str, Callable[[Any], str]] = {"10-a": rms_norm, "10-b": balance}
