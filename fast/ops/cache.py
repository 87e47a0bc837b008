"""The paged KV cache: the metadata of a step, writing new keys and values, and copying blocks.

The layout is the reference's: [num_blocks, block_size, kv_heads, head_dim], block 0 is the null block.

The idea of the two kernels: a token's K and V for all heads are one contiguous stretch each, so a program moves whole
stretches and computes one address. Roofline: bytes read plus bytes written. A step's new K/V is small (256 decodes of
an 8B model: 2 MB), so ``write_kv`` costs its launch, about 2 µs, and decode steps do without it: their attention kernel
writes (``attention_decode``). Copying 2,048 blocks of an 8B model's layer reaches 87% of the
memory bandwidth on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass
class AttnMeta:
    """One step's ragged batch of S sequences and T tokens; the fields and their meaning are the reference's.

    cu_q         [S + 1] int; sequence s has the query rows cu_q[s] .. cu_q[s + 1] - 1, its last positions
    seq_len      [S] int; tokens of K/V after this step's tokens have been written
    block_table  [S, M] int; entries beyond ceil(seq_len / block_size) are never read
    slot         [T] int; where each token's K/V goes; -1 = do not write (a sequence's tokens are all -1 or none is)
    max_q        the most query rows that a sequence has, or a bound on it. Kernels are launched from the host, which
                 does not know what is in the tensors above; None: nothing is known.
    padded       whether there may be rows after the last sequence's; if not, none need to be cleared
    """

    cu_q: Tensor
    seq_len: Tensor
    block_table: Tensor
    slot: Tensor
    # What attention derives from the fields above once per step rather than once per layer: every step needs an
    # AttnMeta of its own (a captured graph has one, and derives anew at each replay).
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    max_q: int | None = None
    padded: bool = True


def attn_meta(
    counts: Sequence[int],
    seq_lens: Sequence[int],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    *,
    write: Sequence[bool] | None = None,
    device: torch.device | str = "cpu",
) -> AttnMeta:
    """Build the metadata from host lists: per sequence its query count, its length after this step, its block ids.

    ``write[s] = False`` leaves the cache of sequence s as it is (slots -1).
    """
    cu_q, slot = [0], []
    for s, (n, length) in enumerate(zip(counts, seq_lens)):
        cu_q.append(cu_q[-1] + n)
        if write is None or write[s]:
            table = block_tables[s]
            slot += [table[p // block_size] * block_size + p % block_size for p in range(length - n, length)]
        else:
            slot += [-1] * n
    width = max((len(t) for t in block_tables), default=0)
    padded = [[*t, *[0] * (width - len(t))] for t in block_tables]
    return AttnMeta(
        cu_q=torch.tensor(cu_q, dtype=torch.int32, device=device),
        seq_len=torch.tensor(list(seq_lens), dtype=torch.int32, device=device),
        block_table=torch.tensor(padded, dtype=torch.int32, device=device).view(len(padded), width),
        slot=torch.tensor(slot, dtype=torch.int64, device=device),
        max_q=max(counts, default=0),
        padded=False,
    )


def write_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot: Tensor) -> None:
    """Put k and v [T, Hk, D] into their slots [T]; rows with slot -1 are left out. Rows of k and v may be strided."""
    width = k.shape[1] * k.shape[2]
    if len(k):
        block = min(1024, triton.next_power_of_2(width))
        grid = (len(k), triton.cdiv(width, block))
        _write_kv[grid](k, v, k_cache, v_cache, slot, k.stride(0), v.stride(0), width, block, num_warps=2)


def copy_blocks(caches: Sequence[tuple[Tensor, Tensor]], src: Tensor, dst: Tensor) -> None:
    """Copy whole blocks src [N] to dst [N] (int) in every layer's cache: copy-on-write after a fork.

    No destination may be another copy's source.
    """
    for k_cache, v_cache in caches:
        size = k_cache[0].numel()
        if len(src):
            block = min(2048, triton.next_power_of_2(size))
            _copy_blocks[(len(src), triton.cdiv(size, block))](k_cache, v_cache, src, dst, size, block)


@triton.jit
def _write_kv(k, v, k_cache, v_cache, slot, stride_k, stride_v, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    where = tl.load(slot + token).to(tl.int64)
    if where >= 0:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        tl.store(k_cache + where * width + i, tl.load(k + token * stride_k + i, mask=i < width), mask=i < width)
        tl.store(v_cache + where * width + i, tl.load(v + token * stride_v + i, mask=i < width), mask=i < width)


@triton.jit
def _copy_blocks(k_cache, v_cache, src, dst, size, BLOCK: tl.constexpr):
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(src + tl.program_id(0)).to(tl.int64) * size + i
    b = tl.load(dst + tl.program_id(0)).to(tl.int64) * size + i
    k, v = tl.load(k_cache + a, mask=i < size), tl.load(v_cache + a, mask=i < size)
    tl.store(k_cache + b, k, mask=i < size)
    tl.store(v_cache + b, v, mask=i < size)
