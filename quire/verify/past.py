"""The K/V that a step reads from earlier steps, computed anew from a sequence's tokens.

The lockstep of the ops takes the past as it is, and so would not notice a block that came from the wrong prompt, was
copied or swapped too early, or was written to by somebody else: both planes read it. So the past of one sequence per
step is computed once more, by the plane's own ops but alone and in a cache of its own, and every layer's K/V compared.

It was computed in other batches and other chunks, so rounding differs, and grows from layer to layer. What the first
layer keeps depends on nothing but token and position, and is held to the tolerance of an op; each further layer adds
one. (Measured on the embedded model: 0.03 in bfloat16, of 0.25 allowed; 1.5e-6 in float32, of 8e-4.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.reference.models import Model
from quire.verify.compare import TOLERANCE, Difference

POSITIONS = 1024  # computed anew, from the beginning: bounds time and memory
MOST = 0.5  # an error that is too much in any layer: K/V of something else is off by about 1


def wrong_past(
    model: Model, caches: Sequence[tuple[Tensor, Tensor]], blocks: Sequence[int], token_ids: Tensor, row: int
) -> list[Difference]:
    """Each layer in which the K/V of a sequence is not what its tokens make of it; at most ``POSITIONS`` are looked at.

    caches     the engine's; ``blocks`` are the sequence's in there
    token_ids  int [n], the tokens whose K/V was computed before this step
    row        of the step's tokens the sequence's first, for the report
    """
    token_ids = token_ids[:POSITIONS].long()
    count, (_, size, *_) = len(token_ids), caches[0][0].shape
    if not count:
        return []
    own_blocks = range(1, -(-count // size) + 1)
    own = [tuple(cache.new_zeros(len(own_blocks) + 1, *cache.shape[1:]) for cache in pair) for pair in caches]
    meta = model.ops.attn_meta([count], [count], [list(own_blocks)], size, device=token_ids.device)
    model.forward(token_ids, torch.arange(count, device=token_ids.device), own, meta)  # type: ignore[arg-type]
    at = torch.tensor(blocks[: len(own_blocks)], device=token_ids.device)
    errors = torch.stack(
        [
            _errors(cache.index_select(0, at).flatten(0, 1)[:count], fresh[1:].flatten(0, 1)[:count])
            for pair, fresh_pair in zip(caches, own)
            for cache, fresh in zip(pair, fresh_pair)
        ]
    ).cpu()  # [layers * 2, count]
    found = []
    for i, error in enumerate(errors):
        layer, allowed = i // 2, min(MOST, (1 + i // 2) * TOLERANCE[caches[0][0].dtype])
        bad = torch.nonzero(~(error <= allowed))[:, 0].tolist()
        if bad:
            problem = (
                f"error {float(error.max()):.2g}, allowed {allowed:.2g}; in {len(bad)} of {count} positions, the first "
                f"is {bad[0]}, in block {blocks[bad[0] // size]}"
            )
            found.append(Difference(f"{'KV'[i % 2]} of the past, layer {layer}", problem, row))
    return found


def _errors(got: Tensor, expected: Tensor) -> Tensor:
    """[n, heads, D] each -> float32 [n]: the distance of every position's K or V, relative to its length."""
    got, expected = got.flatten(1).float(), expected.flatten(1).float()
    return (got - expected).norm(dim=1) / expected.norm(dim=1)
