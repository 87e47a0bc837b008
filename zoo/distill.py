"""Distils pocket-draft from pocket: the target is the teacher's whole next-token distribution.

    python -m quire.zoo.distill --teacher runs/pocket/model --out runs/draft     # four minutes

A draft is useful when it agrees with its target, so it learns from what pocket says and not from the data.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.zoo import model_path
from quire.zoo.data import Recipe
from quire.zoo.model import DRAFT, Llama, document_mask, load
from quire.zoo.train import Loss, fit


def distillation_loss(teacher: Llama) -> Loss:
    """KL(teacher || student) per position, with the weights of the data."""

    def loss(student: Llama, batch: dict[str, Tensor]) -> Tensor:
        mask = document_mask(batch["documents"])
        with torch.no_grad():
            target = teacher(batch["tokens"], batch["positions"], mask)[:, :-1].float().log_softmax(-1)
        guess = student(batch["tokens"], batch["positions"], mask)[:, :-1].float().log_softmax(-1)
        divergence = F.kl_div(guess, target, log_target=True, reduction="none").sum(-1)
        weights = batch["weights"][:, 1:]
        return (divergence * weights).sum() / weights.sum()

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=model_path("pocket"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--workers", type=int, default=12)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(2)
    teacher = load(args.teacher).to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    recipe = Recipe(seed=2, rows=args.rows, total_steps=args.steps)
    fit(
        Llama(DRAFT),
        recipe,
        args.out,
        args.teacher,
        lr=args.lr,
        workers=args.workers,
        loss_fn=distillation_loss(teacher),
    )


if __name__ == "__main__":
    main()
