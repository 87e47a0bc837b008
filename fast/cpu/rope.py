"""Rotary position embedding, with the RMS norm of each head that some models put before it, in one pass.

The idea: a head of 64 numbers is loaded, normed, turned and stored without leaving the processor's first cache; the
reference needs nine operators. 64 tokens of 8 + 4 heads on one core: float32 22 µs, bfloat16 26; the reference 47 and
60. Of 512 tokens: 170 and 157 µs against 1,540 and 740. (Bound: 8 µs for the call, 0.4 MB of memory per 64 tokens.)
"""

from __future__ import annotations

from torch import Tensor

from quire.fast.cpu.kernels import KINDS, rope
from quire.fast.cpu.launch import empty_result, rows_dense, threads_for

GRAIN = 1 << 13  # numbers per thread, at the least


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
    ``k_weight`` [D] each head is RMS-normed first (Qwen3). Returns new tensors in the dtypes of q and k; norm and
    rotation are in float32.
    """
    q, k, positions = rows_dense(q), rows_dense(k), positions.long()
    rows, heads, dim = q.shape
    turned = empty_result(q.shape, q.dtype), empty_result(k.shape, k.dtype)
    rope(
        q.data_ptr(), k.data_ptr(), positions.data_ptr(), cos_sin.data_ptr(),
        0 if q_weight is None else q_weight.data_ptr(), 0 if k_weight is None else k_weight.data_ptr(),
        turned[0].data_ptr(), turned[1].data_ptr(), rows, heads, k.shape[1], dim, q.stride(0), k.stride(0),
        KINDS[q.dtype], KINDS[turned[0].dtype], eps, threads=threads_for(rows * heads * dim, GRAIN),
    )  # fmt: skip
    return turned[0].to(q.dtype), turned[1].to(k.dtype)
