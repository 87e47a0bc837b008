"""One training or test conversation, and the rule that keeps the two apart.

The split is by construction: every example has a `key` (the two numbers of a sum, the items of a list, a
fact together with one phrasing), and a stable hash of the key alone decides whether that instance may be
trained on or is held out. Generators draw until the hash fits the side they were asked for, so no seed and
no sample size can mix them up.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

HELD_OUT_SHARE = 8  # one key in eight is held out


@dataclass
class Example:
    """`messages` end with the assistant's answer. `tools` are OpenAI tool definitions."""

    task: str
    key: tuple
    messages: list[dict]
    tools: list[dict] | None = None

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"]


def held_out(key: tuple) -> bool:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0


class NoSuchKey(LookupError):
    """A generator of few values has none on the wanted side of the split."""


def draw_key(rng: random.Random, held: bool, draw: Callable[[random.Random], tuple]) -> tuple:
    """draw(rng) again and again until its result lies on the wanted side of the split."""
    for _ in range(2000):
        key = draw(rng)
        if held_out(key) == held:
            return key
    raise NoSuchKey(f"nothing like {key} on the {'held-out' if held else 'training'} side")


def turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
