"""Muon: momentum whose update is made orthogonal, for the weight matrices inside the layers.

(Keller Jordan and others, 2024; the scale 0.2 * sqrt(width) by Moonshot, 2025, lets it share a learning
rate with AdamW.) All matrices of one shape are stacked, so that a step is a few dozen batched products
instead of thousands of small ones.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on [N, rows, columns], rows <= columns: brings all singular values near 1."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                shapes.setdefault((min(p.shape), max(p.shape)), []).append(p)
            for (_, wide), params in shapes.items():
                grads = [p.grad for p in params if p.grad is not None]
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                updates = torch._foreach_lerp(grads, buffers, group["momentum"])  # Nesterov
                tall = [p.shape[0] > p.shape[1] for p in params]
                stack = torch.stack([u.mT if t else u for u, t in zip(updates, tall, strict=True)])
                done = orthogonalize(stack) * (-group["lr"] * 0.2 * wide**0.5)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                steps = [u.mT if t else u for u, t in zip(done.unbind(), tall, strict=True)]
                torch._foreach_add_(params, steps)
