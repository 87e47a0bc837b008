"""The paged KV cache: writing new keys and values, and copying blocks.

The layout is the reference's: [num_blocks, block_size, kv_heads, head_dim], block 0 is the null block. Both are bound
by moving bytes, and a step's are few: 64 decodes of a small model write 64 KB per layer, in 7 µs, which is the cost of
any call here (torch's ``index_copy_`` for K and for V: 19 µs).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quire.fast.cpu.kernels import write_kv as write_kv_kernel
from quire.fast.cpu.launch import rows_dense, threads_for

GRAIN = 1 << 16  # bytes per thread, at the least


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot: Tensor) -> None:
    """Put k and v [T, Hk, D] into their slots [T]; rows with slot -1 are left out. Rows of k and v may be strided."""
    k, v = rows_dense(k.to(k_cache.dtype)), rows_dense(v.to(v_cache.dtype))
    slot = slot.long()
    pairs = k.element_size() // 2  # of bytes, in a number
    n = k.shape[1] * k.shape[2] * pairs
    write_kv_kernel(
        k.data_ptr(), v.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), slot.data_ptr(), len(k), n,
        k.stride(0) * pairs, v.stride(0) * pairs, threads=threads_for(4 * n * len(k), GRAIN),
    )  # fmt: skip


def copy_blocks(caches: Sequence[tuple[Tensor, Tensor]], src: Tensor, dst: Tensor) -> None:
    """Copy whole blocks src [N] to dst [N] (int) in every layer's cache: copy-on-write after a fork.

    No destination may be another copy's source.
    """
    for pair in caches:
        for cache in pair:
            cache.index_copy_(0, dst.long(), cache.index_select(0, src))
