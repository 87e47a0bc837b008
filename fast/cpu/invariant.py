"""The same ops, with results that are bitwise independent of the batch (He et al. 2025, "Defeating nondeterminism").

The kernels of this plane compute every row by itself, in an order that depends on its own position only; what is left
to do is to keep away from library calls that choose an order by the shape of the whole problem:

- ``linear`` multiplies tiles of exactly 16 rows, so the library always solves the same problem;
- ``attention`` sends every query through the loop over the blocks, however many a sequence has.

The claim holds per machine. Its price, 64 requests on pocket on one core, in time: +34% in bfloat16, +28% in float32;
most of it is ``linear``, which reads its weight once per 16 rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.fast.cpu.activation import gelu_new, relu, silu_and_mul
from quire.fast.cpu.attention import EVERYTHING, attend_few
from quire.fast.cpu.cache import copy_blocks, write_kv
from quire.fast.cpu.linear import embed
from quire.fast.cpu.linear import linear as linear_of_any_shape
from quire.fast.cpu.norm import add_rms_norm, layer_norm, rms_norm
from quire.fast.cpu.rope import qk_norm_rope
from quire.fast.metadata import AttnMeta, attn_meta

__all__ = [
    "AttnMeta",
    "add_rms_norm",
    "attention",
    "attn_meta",
    "copy_blocks",
    "embed",
    "gelu_new",
    "layer_norm",
    "linear",
    "qk_norm_rope",
    "relu",
    "rms_norm",
    "silu_and_mul",
]

ROWS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plain or packed, plus bias [N] -> [T, N], in tiles of 16 rows."""
    filled = torch.cat([x, x.new_zeros(-len(x) % ROWS, x.shape[1])])
    return torch.cat([linear_of_any_shape(tile, weight, bias) for tile in filled.split(ROWS)])[: len(x)]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Shapes and meaning as in ``quire.fast.cpu.attention``."""
    write_kv(k, v, k_cache, v_cache, meta.slot)
    return attend_few(q, k_cache, v_cache, meta, scale, window, soft_cap, EVERYTHING)
