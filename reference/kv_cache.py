"""The tensors of a KV cache: allocated once, moved block by block between device and host."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.reference.control.plan import Swap
from quire.reference.models.config import ModelConfig

Caches = list[tuple[Tensor, Tensor]]


def allocate(
    config: ModelConfig,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    pin: bool = False,
) -> Caches:
    """Per layer K and V, [num_blocks, block_size, kv_heads, head_dim] each. The memory is not cleared."""
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    pair = [torch.empty(shape, dtype=dtype, device=device, pin_memory=pin) for _ in range(2 * config.num_layers)]
    return list(zip(pair[::2], pair[1::2]))


def allocate_host(config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, pin: bool) -> Caches:
    """The swap space for ``num_blocks`` blocks. They are numbered from 1 as well, so there is one more."""
    if not num_blocks:
        return []
    return allocate(config, num_blocks + 1, block_size, dtype, torch.device("cpu"), pin=pin)


def swap_blocks(caches: Caches, host_caches: Caches, swaps: list[Swap], *, out: bool) -> None:
    """Copy blocks to the host (``out``) or back."""
    device_ids, host_ids = (torch.tensor(ids) for ids in zip(*swaps))
    at = device_ids.to(caches[0][0].device)
    for pair, host_pair in zip(caches, host_caches):
        for cache, host in zip(pair, host_pair):
            if out:
                host[host_ids] = cache[at].to("cpu")
            else:
                cache[at] = host[host_ids].to(cache.device)
