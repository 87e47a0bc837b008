"""Decode steps as CUDA graphs: one launch instead of several hundred, which would take longer than the GPU's work.

A graph repeats the same kernels on the same memory, so there is one per batch size, for a ladder of sizes; a batch is
padded to the next one with rows that nobody reads. Everything that differs from step to step (rows, positions, new
blocks) is in one small input buffer; what kernels derive from it they derive anew. The forward pass and sampling are
graphs of their own, so that a step whose tokens need something of the host's (a grammar's mask) still replays the
first.

Nothing is captured at the start. A size that comes up for the first time runs eagerly, which also compiles what is not
compiled yet; when it comes up again it is captured first. All graphs take their memory from one pool: they never run
at the same time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

T = TypeVar("T")
EXACT = 8  # numbers of tokens up to this one are not padded


def ladder(most: int) -> list[int]:
    """Batch sizes up to ``most``: 1, 2, 4, 8, then in steps of 8, beyond 128 of 16, beyond 256 of 32, and so on."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < most:
        sizes.append(sizes[-1] + max(8, (1 << (sizes[-1].bit_length() - 1)) // 8))
    return [*sizes[: bisect_left(sizes, most)], most]


def doubling(most: int) -> list[int]:
    """Batch sizes up to ``most`` where padding costs next to nothing, and few graphs are worth more."""
    return [*(1 << i for i in range((most - 1).bit_length())), most]


def coarse(most: int) -> list[int]:
    """Numbers of tokens up to ``most`` for steps with drafts, which differ from step to step: padded by up to a fifth,
    for there is a graph for each."""
    sizes = list(range(1, EXACT + 1))
    while sizes[-1] < most:
        sizes.append(sizes[-1] + max(2, 1 << (sizes[-1].bit_length() - 3)))
    return [*sizes[: bisect_left(sizes, most)], most]


def smallest(sizes: list[int], least: int) -> int:
    """The smallest of a ladder's sizes that is not below ``least``."""
    return sizes[bisect_left(sizes, least)]


class Graphs:
    """Graphs by key, each with what its function returned when it was captured: the tensors that replays fill."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, object]] = {}
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def run(self, key: Hashable, function: Callable[[], T]) -> T:
        """``function()``, eagerly or by a replay; it must do the same on the same memory each time for this key."""
        if not self.enabled:
            return function()
        if key not in self._seen:
            self._seen.add(key)
            return function()
        if key not in self._captured:
            self._captured[key] = self._capture(function)
        graph, outputs = self._captured[key]
        graph.replay()
        return outputs  # type: ignore[return-value]

    def _capture(self, function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            outputs = function()
        finally:
            graph.capture_end()
        return graph, outputs
