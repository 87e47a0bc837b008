"""The fast plane's kernels, compiled where there is a GPU and through Triton's interpreter elsewhere."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported, its own library of functions included. Interpreted kernels run on CPU tensors.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="the fast plane's kernels are written in Triton")
