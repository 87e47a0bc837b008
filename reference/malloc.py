"""Keep freed host memory for the next step instead of giving it back to the system.

A step on a CPU allocates and frees the same few megabytes of activations over and over. glibc returns such blocks to
the system at once and fetches new ones for the next step, and every page that comes back must be mapped and zeroed. On
virtual machines that costs more than the arithmetic: with 16-bit weights a fifth of the throughput, with small prompt
chunks half of it (``python -m benchmarks.throughput`` shows it with and without ``MALLOC_TRIM_THRESHOLD_=131072``).
"""

from __future__ import annotations

import ctypes
import os

# From malloc.h. 32 MiB is the largest block that glibc keeps in its heap; larger ones are always mapped afresh.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES, LARGEST_KEPT = (1 << 31) - 1, 32 << 20


def keep_freed_memory() -> bool:
    """Ask glibc to hold on to freed memory (up to 2 GiB). False where there is no glibc, or the user has set it."""
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEEP_BYTES) and mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT))
