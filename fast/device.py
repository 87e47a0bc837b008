"""What a kernel and its launcher need to know about where they run: compiled or interpreted, on which GPU.

Triton's interpreter (``TRITON_INTERPRET=1``) runs the same kernels on CPU tensors, one program after the other, so that
their logic is tested without a GPU. It computes wrongly with bfloat16 values (they are held as bit patterns), which is
why every kernel that multiplies asks ``math_dtype`` and casts right after its loads: nothing when compiled.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

# Products and sums may be fused, which the kernels count on: Triton's default up to 3.9, which warns that from 3.10 on
# it will be another.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

INTERPRETED: bool = triton.knobs.runtime.interpret

# Programmatic dependent launch (Hopper and later): a kernel's programs come in while the previous kernel's last ones
# still run, and wait where they need its results. Between short kernels that is a microsecond each time. Every kernel
# that is launched with OVERLAP calls ``overlap`` before it touches what an earlier kernel reads or writes.
_NVIDIA = torch.version.cuda is not None and torch.cuda.is_available()
_CAN_OVERLAP = not INTERPRETED and _NVIDIA and torch.cuda.get_device_capability() >= (9, 0)
OVERLAP: dict[str, bool] = {"launch_pdl": True} if _CAN_OVERLAP else {}
_OVERLAPS = tl.constexpr(_CAN_OVERLAP)

_TL = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def math_dtype(dtype: torch.dtype) -> Any:
    """The Triton dtype in which tensors of ``dtype`` are multiplied: their own, or float32 for interpreted bfloat16."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _TL[dtype]


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the GPU; a token number where kernels are interpreted."""
    return 4 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def overlap():
    """Let the next kernel come in as soon as all programs of this one run; wait for the end of the previous one."""
    if _OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
