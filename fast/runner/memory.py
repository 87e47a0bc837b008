"""How much memory a step takes: one step of the largest kind, run for its peak before the KV cache is allocated.

Arithmetic (``quire.reference.memory``) knows the tensors that a model's code names, but not what matrix products and
kernels take on top. So the widest prompt step is run once, on a row of padding that reads the null block, and the
widest decode step after it: its memory will belong to the graphs' pool, and is not shared with the other's.
"""

from __future__ import annotations

import numpy as np
import torch

from quire.fast.runner.inputs import build_inputs
from quire.fast.runner.rows import Rows
from quire.fast.runner.sampling import Places, Wants, choose
from quire.reference.models import Model


@torch.inference_mode()
def measure_activations(
    model: Model, rows: Rows, dtype: torch.dtype, max_num_batched_tokens: int, most_sampled: int
) -> int:
    """Bytes that a prompt step and a decode step take at their peaks, together. The rows must be on a GPU and unused.

    most_sampled: tokens of a decode step, drafts included, all of which are sampled.

    Raises torch.OutOfMemoryError if there is not even room for that.
    """
    tokens, longest = max_num_batched_tokens, rows.tokens.shape[1] - 1
    sequences = rows.padding
    prompts = [min(longest, tokens - begin) for begin in range(0, tokens, longest)][:sequences]
    decodes = [1] * most_sampled
    return sum(_peak(model, rows, dtype, counts, sampled=most_sampled) for counts in (prompts, decodes))


def _peak(model: Model, rows: Rows, dtype: torch.dtype, counts: list[int], sampled: int) -> int:
    """Bytes at the peak of a step that computes ``counts`` tokens per sequence and then samples ``sampled`` times."""
    c, device = model.config, rows.tokens.device
    shape = (1, rows.block_size, c.num_kv_heads, c.head_dim)
    caches = [(torch.zeros(shape, dtype=dtype, device=device),) * 2 for _ in range(c.num_layers)]

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    row, zeros = tensor([rows.padding] * len(counts)), tensor([0] * len(counts))
    cu_q = tensor([0, *np.cumsum(counts).tolist()])
    sampled_rows = tensor([rows.padding] * sampled)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    inputs = build_inputs(rows, row, zeros, zeros, zeros, cu_q, sum(counts), max(counts))
    hidden = model.forward(inputs.ids, inputs.positions, caches, inputs.meta)  # type: ignore[arg-type]
    scores = model.logits(hidden[torch.arange(sampled, device=device) % len(hidden)])
    at = Places(sampled_rows, sampled_rows * 0, torch.arange(sampled + 1, dtype=torch.int32, device=device), most=1)
    choose(scores, rows, at, Wants(penalised=True, truncated=True))
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
