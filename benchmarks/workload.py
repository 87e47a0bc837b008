"""The requests that benchmarks run: token ids and lengths from a fixed seed, the same for quire and its peers."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One request: a prompt, and how many tokens to generate (end-of-sequence tokens are ignored)."""

    prompt: list[int]
    output_len: int


def mixed(count: int, inputs: tuple[int, int], outputs: tuple[int, int], vocab_size: int, seed: int = 0) -> list[Job]:
    """``count`` requests with uniformly random lengths in the given closed ranges."""
    rng = random.Random(seed)
    return [
        Job([rng.randrange(10, vocab_size) for _ in range(rng.randint(*inputs))], rng.randint(*outputs))
        for _ in range(count)
    ]
