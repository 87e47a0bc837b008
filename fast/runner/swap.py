"""Swap space: blocks of preempted sequences in pinned host memory, moved on a stream of their own.

On the host a block is one stretch of all layers' K and V, so that it is one copy. Between it and the cache stands a
buffer on the device: gathering from and scattering into the cache takes microseconds and happens on the step's stream,
in the plan's order; the slow way over the bus happens beside the steps that run meanwhile. Blocks that come back are
on their way before the step that needs them, and only that step waits. The bus stream does things one after the other,
so a host block is read before it is written anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.reference.control.plan import Swap
from quire.reference.models import ModelConfig

Caches = list[tuple[Tensor, Tensor]]


def allocate(config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> Caches:
    """A KV cache: per layer K and V [num_blocks, block_size, kv_heads, head_dim].

    Block 0, which padding reads, is cleared; nothing else is.
    """
    shape = (num_blocks, block_size, config.num_kv_heads, config.head_dim)
    both = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2 * config.num_layers)]
    for cache in both:
        cache[0].zero_()
    return list(zip(both[::2], both[1::2]))


class SwapSpace:
    """``num_blocks`` host blocks, numbered from 1, for a KV cache ``caches`` (pairs per layer)."""

    def __init__(self, caches: Caches, num_blocks: int) -> None:
        block = caches[0][0][0]
        self.caches, self.device = caches, block.device
        on_gpu = block.is_cuda
        shape = (num_blocks + 1, 2 * len(caches), *block.shape)
        self.host = torch.empty(shape, dtype=block.dtype, pin_memory=on_gpu)
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None

    def move_out(self, swaps: Sequence[Swap], at: Tensor) -> None:
        """Copy device blocks to host blocks; the device blocks may be overwritten by what is launched next.

        at: int32 [len(swaps)], the device blocks once more, on the device.
        """
        buffer = torch.stack([cache.index_select(0, at) for pair in self.caches for cache in pair], dim=1)
        if self._stream is None:
            self.host[[s.host for s in swaps]] = buffer
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for i, swap in enumerate(swaps):
                self.host[swap.host].copy_(buffer[i], non_blocking=True)
        buffer.record_stream(self._stream)

    def move_in(self, swaps: Sequence[Swap], at: Tensor) -> None:
        """Copy host blocks to device blocks ``at`` (int32); what is launched next finds them there."""
        shape = (len(swaps), *self.host.shape[1:])
        if self._stream is None:
            buffer = self.host[[s.host for s in swaps]]
        else:
            with torch.cuda.stream(self._stream):
                buffer = torch.empty(shape, dtype=self.host.dtype, device=self.device)
                for i, swap in enumerate(swaps):
                    buffer[i].copy_(self.host[swap.host], non_blocking=True)
            torch.cuda.current_stream().wait_stream(self._stream)
            buffer.record_stream(torch.cuda.current_stream())
        parts = iter(buffer.unbind(1))
        for pair in self.caches:
            for cache in pair:
                cache.index_copy_(0, at.long(), next(parts))
