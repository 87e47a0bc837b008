"""Rotary position embedding: from a checkpoint's settings to the table of cosines and sines that the op reads.

The angle of component pair i at position p is p * theta ** (-2 i / D). Models that were stretched to longer texts
change these frequencies: ``linear`` slows all of them down (Chen et al. 2023), ``llama3`` only the slow ones, with a
ramp between (Llama 3.1), ``yarn`` likewise by rotations per training context, and also sharpens the softmax (Peng et
al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.reference.control.errors import CheckpointError

SCALINGS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """``theta`` is the base, ``kind`` one of SCALINGS; the rest is read by the kinds that need it."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def parse_rope(raw: dict[str, Any]) -> Rope:
    """Read config.json's ``rope_parameters``, or the older pair ``rope_theta`` and ``rope_scaling``."""
    params = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    field = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    kind = params.get("rope_type", params.get("type", "default"))
    theta = float(params.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    if kind not in SCALINGS or any(isinstance(v, dict) for v in params.values()):
        raise CheckpointError(
            field, params, "unsupported kind of rotary embedding", f"Supported: {', '.join(SCALINGS)}"
        )
    if (params.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0) != 1.0:
        raise CheckpointError(
            "partial_rotary_factor",
            params or raw["partial_rotary_factor"],
            "rotating only a part of each head is not supported",
            "Use another model",
        )
    if kind == "default":
        return Rope(theta)
    if not params.get("factor"):
        raise CheckpointError(
            f"{field}.factor", params.get("factor"), f"missing, and {kind} scaling needs it", "Repair config.json"
        )
    factor = float(params["factor"])
    attention_factor = params.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0
        if kind == "yarn":
            both = params.get("mscale") and params.get("mscale_all_dim")
            over, under = (params["mscale"], params["mscale_all_dim"]) if both else (1.0, 0.0)
            attention_factor = _yarn_sharpening(factor, over) / _yarn_sharpening(factor, under)
    return Rope(
        theta=theta,
        kind=kind,
        factor=factor,
        original_max_position=params.get("original_max_position_embeddings") or raw["max_position_embeddings"],
        low_freq_factor=params.get("low_freq_factor", 1.0),
        high_freq_factor=params.get("high_freq_factor", 4.0),
        beta_fast=params.get("beta_fast") or 32.0,
        beta_slow=params.get("beta_slow") or 1.0,
        truncate=params.get("truncate", True),
        attention_factor=float(attention_factor),
    )


def _yarn_sharpening(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Angle per position of each component pair, [head_dim / 2] float32, on the CPU."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    freq = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return freq / rope.factor
    if rope.kind == "llama3":
        # Rotations within the original context: more than high_freq_factor stay, fewer than low_freq_factor slow down.
        rotations = rope.original_max_position * freq / (2 * math.pi)
        keep = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = keep.clamp(0, 1)
        return keep * freq + (1 - keep) * freq / rope.factor
    if rope.kind == "yarn":

        def pair_of(rotations: float) -> float:
            """Which component pair turns so many times within the original context."""
            wavelength = rope.original_max_position / rotations
            return head_dim * math.log(wavelength / (2 * math.pi)) / (2 * math.log(rope.theta))

        low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        slowed = ((torch.arange(head_dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
        return (1 - slowed) * freq + slowed * freq / rope.factor
    return freq


def cos_sin_table(rope: Rope, head_dim: int, length: int, device: torch.device | str) -> Tensor:
    """[length, head_dim] float32: row p holds the cosines, then the sines, of position p's angles."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(rope, head_dim))
    return (torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor).to(device)
