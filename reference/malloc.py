"""Keep freed host memory for the next step instead of giving it back to the system.

A step on a CPU allocates and frees the same few megabytes of activations over and over. glibc gives such blocks back to
the system and fetches new ones for the next step, and every page that comes back must be mapped and zeroed; on virtual
machines that can cost as much as the arithmetic. Setting one of malloc's own variables turns this off, so the effect
is easy to see (2,300 against 1,000 tokens/s on the machine of docs/benchmarks.md; glibc's default, which adapts its
thresholds, lies between)::

    quire bench --dtype bfloat16 --input-len 16:128
    MALLOC_TRIM_THRESHOLD_=131072 quire bench --dtype bfloat16 --input-len 16:128
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
