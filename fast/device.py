"""What a kernel's launcher needs to know about where it runs: compiled or interpreted, on how many processors.

Triton's interpreter (``TRITON_INTERPRET=1``) runs the same kernels on CPU tensors, one program after the other, so that
their logic is tested without a GPU. It computes wrongly with bfloat16 values (they are held as bit patterns), which is
why every kernel that multiplies asks ``math_dtype`` and casts right after its loads: nothing when compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED: bool = triton.knobs.runtime.interpret

_TL = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def math_dtype(dtype: torch.dtype) -> Any:
    """The Triton dtype in which tensors of ``dtype`` are multiplied: their own, or float32 for interpreted bfloat16."""
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _TL[dtype]


@cache
def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the GPU; a token number where kernels are interpreted."""
    return 4 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
