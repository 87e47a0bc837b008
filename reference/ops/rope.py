"""Rotary position embedding (Su et al. 2021), with the RMS norm of each head that some models put before it."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.reference.ops.norm import rms_norm


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    eps: float = 1e-6,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Turn each pair of query and key components by an angle proportional to the position.

    q [T, Hq, D] and k [T, Hk, D]; positions [T] (int) choose rows of cos_sin [P, D] (float32: D/2 cosines, then D/2
    sines). Component i is paired with i + D/2 (the "neox" layout of Hugging Face checkpoints). With ``q_weight`` and
    ``k_weight`` [D] each head is RMS-normed first (Qwen3). Returns new tensors in the dtypes of q and k; the rotation
    itself is done in float32.
    """
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps)
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)  # [T, 1, D/2] each
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin): rolling by half a head puts each component's partner in its place."""
    y = x.float()
    return (y * cos + y.roll(y.shape[-1] // 2, dims=-1) * sin).to(x.dtype)
