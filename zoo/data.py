"""Packed training batches, made on the fly: batch number s is a pure function of (seed, s).

That is what makes training resumable without storing data: a run continued at step s sees the batches it
would have seen.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from quire.zoo import world
from quire.zoo.chat import END, PAD, START, TEXT, loss_weights, render

Document = tuple[np.ndarray, np.ndarray]  # token ids, loss weights


@dataclass(frozen=True)
class Recipe:
    """What a run trains on."""

    seed: int = 1
    rows: int = 64
    length: int = 2048
    total_steps: int = 9000
    prompt_weight: float = 0.03
    curriculum: bool = True


def longest_at(recipe: Recipe, step: int) -> int:
    """Short conversations first: copying forms at 256 tokens in minutes, and at 2,048 hardly at all."""
    if not recipe.curriculum:
        return recipe.length
    done = step / recipe.total_steps
    for until, longest in ((0.08, 256), (0.16, 512), (0.28, 1024)):
        if done < until:
            return min(longest, recipe.length)
    return recipe.length


class Batches(Dataset):
    """Each item: tokens, documents (number of the conversation), positions [B, T] int32; weights float32."""

    def __init__(self, tokenizer_file: Path, recipe: Recipe):
        self.recipe = recipe
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        vocabulary = self.tokenizer.get_vocab()
        # a KeyError here: the role's name must be one token
        ids = (vocabulary[t] for t in (START, END, PAD, "assistant"))
        self.start, self.end, self.pad, self.assistant = ids

    def __len__(self) -> int:
        return self.recipe.total_steps

    def _documents(self, rng: random.Random, longest: int, wanted: int) -> list[Document]:
        """Tokenized conversations with their loss weights, `wanted` tokens in all."""
        found: list[Document] = []
        size = 0
        while size < wanted:
            texts, plain = [], []
            for _ in range(64):
                is_plain = rng.random() < 0.02
                plain.append(is_plain)
                if is_plain:
                    texts.append((TEXT if rng.random() < 0.5 else "") + world.plain_text(rng) + TEXT)
                else:
                    example = world.conversation(rng, longest)
                    texts.append(render(example.messages, example.tools))
            for encoding, is_plain in zip(
                self.tokenizer.encode_batch(texts, add_special_tokens=False), plain, strict=True
            ):
                ids = np.array(encoding.ids, dtype=np.int32)
                if len(ids) > self.recipe.length:
                    continue
                if is_plain:
                    weights = np.full(len(ids), 0.3, dtype=np.float32)
                    weights[0] = 0.0
                else:
                    weights = loss_weights(ids, self.start, self.end, self.assistant, self.recipe.prompt_weight)
                found.append((ids, weights))
                size += len(ids)
        return found

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        r = self.recipe
        rng = random.Random(f"{r.seed}:{step}")
        documents = self._documents(rng, longest_at(r, step), r.rows * r.length)
        documents.sort(key=lambda d: -len(d[0]))  # long ones first, short ones fill the gaps
        tokens = np.full((r.rows, r.length), self.pad, dtype=np.int32)
        numbers = np.zeros((r.rows, r.length), dtype=np.int32)
        positions = np.zeros((r.rows, r.length), dtype=np.int32)
        weights = np.zeros((r.rows, r.length), dtype=np.float32)
        used = np.zeros(r.rows, dtype=np.int64)
        for number, (ids, weight) in enumerate(documents, start=1):
            row = int(used.argmin())
            first, last = used[row], used[row] + len(ids)
            if last > r.length:
                continue
            tokens[row, first:last], weights[row, first:last] = ids, weight
            numbers[row, first:last], positions[row, first:last] = number, np.arange(len(ids))
            used[row] = last
        arrays = {"tokens": tokens, "documents": numbers, "positions": positions, "weights": weights}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
