"""All compiled loops at once, when an engine starts: otherwise its first request would wait for the compiler."""

from __future__ import annotations

from quire.fast.cpu import attend, kernels
from quire.fast.cpu.launch import Kernel


def load_kernels() -> None:
    """Compile every kernel of this plane, or load what an earlier process has compiled."""
    for module in (kernels, attend):
        for value in vars(module).values():
            if isinstance(value, Kernel):
                value.load()
