"""Trains pocket on conversations that are generated while it trains.

    python -m quire.zoo.train --out runs/pocket     # the model in the zoo; on an H200 seven minutes
    python -m quire.zoo.train --out runs/pocket     # again: goes on from runs/pocket/checkpoint.pt
    python -m quire.zoo.train --out runs/more --init runs/pocket/model --steps 3000 --no-curriculum

Matrices learn with Muon, embeddings and norms with AdamW. The learning rate warms up, stays, and falls to
zero over the last part. pocket-draft is trained by distill.py, with the same loop and another loss.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from quire.zoo import model_path
from quire.zoo.chat import END, PAD, TEXT
from quire.zoo.data import Batches, Recipe
from quire.zoo.model import POCKET, Llama, document_mask, export, load
from quire.zoo.muon import Muon

Loss = Callable[[Llama, dict[str, Tensor]], Tensor]


def answer_loss(model: Llama, batch: dict[str, Tensor]) -> Tensor:
    """Cross entropy of the next token, weighted: answers count fully, prompts a little."""
    mask = document_mask(batch["documents"])
    logits = model(batch["tokens"], batch["positions"], mask)[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch["tokens"][:, 1:].flatten().long(), reduction="none")
    weights = batch["weights"][:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def schedule(step: int, total: int, warm_up: int, decay: float) -> float:
    """Factor on the learning rate: linear up, flat, linear down over the last share `decay` of the run."""
    return min(1.0, (step + 1) / warm_up, (total - step) / max(1.0, decay * total))


def optimizers(model: Llama, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def save_checkpoint(path: Path, model: Llama, optims: list[torch.optim.Optimizer], step: int) -> None:
    """Written beside and then renamed, so that an interrupted save cannot destroy the last good one."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optims], "step": step}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def fit(
    model: Llama,
    recipe: Recipe,
    out: Path,
    tokenizer_dir: Path,
    *,
    lr: float,
    warm_up: int = 200,
    decay: float = 0.3,
    stop: int | None = None,
    save_every: int = 1000,
    workers: int = 0,
    loss_fn: Loss = answer_loss,
) -> Llama:
    """Runs from the checkpoint in `out`, if any, to `stop` (default: the end), exporting on the way."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = min(stop or recipe.total_steps, recipe.total_steps)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    batches = Batches(tokenizer_dir / "tokenizer.json", recipe)
    model.to(device).train()
    optims = optimizers(model, lr)
    first, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        first = state["step"]
        print(f"continuing at step {first}", flush=True)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, stop),
        num_workers=workers,
        pin_memory=device == "cuda",
        prefetch_factor=8 if workers else None,
    )
    compute: Loss = torch.compile(loss_fn) if device == "cuda" else loss_fn
    end, text, pad = (batches.tokenizer.get_vocab()[t] for t in (END, TEXT, PAD))

    def save(step: int) -> None:
        save_checkpoint(checkpoint, model, optims, step)
        export(model, out / "model", eos_ids=[end, text], bos_id=text, pad_id=pad)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizer_dir / name, out / "model" / name)

    began, seen = time.perf_counter(), first
    for step, batch in enumerate(loader, start=first):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = lr * schedule(step, recipe.total_steps, warm_up, decay)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = compute(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0 or step + 1 == stop:
            value = loss.item()
            now = time.perf_counter()
            rate = (step + 1 - seen) * recipe.rows * recipe.length / (now - began)
            print(f"step {step + 1} loss {value:.4f} tokens/s {rate:,.0f}", flush=True)
            began, seen = now, step + 1
        if (step + 1) % save_every == 0 or step + 1 == stop:
            save(step + 1)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the exported model")
    parser.add_argument("--tokenizer", type=Path, default=model_path("pocket"))
    parser.add_argument("--init", type=Path, help="start from the weights of this exported model")
    parser.add_argument("--steps", type=int, default=9000, help="length of the whole run")
    parser.add_argument("--stop", type=int, help="stop after this many steps of it")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--decay", type=float, default=0.5, help="share of the run over which the learning rate falls")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-curriculum", action="store_true", help="full length from the first step")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=1000)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    model = load(args.init) if args.init else Llama(POCKET)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    recipe = Recipe(
        seed=args.seed, rows=args.rows, length=args.length, total_steps=args.steps, curriculum=not args.no_curriculum
    )
    fit(
        model,
        recipe,
        args.out,
        args.tokenizer,
        lr=args.lr,
        decay=args.decay,
        stop=args.stop,
        workers=args.workers,
        save_every=args.save_every,
    )


if __name__ == "__main__":
    main()
