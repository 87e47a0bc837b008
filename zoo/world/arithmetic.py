"""Adding and subtracting whole numbers of up to three digits (a few of four).

One token per digit makes this learnable.
"""

import random

from quire.zoo.world.example import Example, draw_key, turn

_SUMS = [
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} =",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "what's {a} + {b}",
    "How much is {a} plus {b}?",
    "{a} plus {b}",
    "Please add {b} to {a}.",
    "Calculate {a}+{b}.",
    "{a}+{b}=?",
    "What is the sum of {a} and {b}?",
    "can you add {a} and {b}?",
]
_DIFFERENCES = [
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} =",
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "what's {a} - {b}",
    "How much is {a} minus {b}?",
    "{a} minus {b}",
    "Take {b} away from {a}.",
    "Calculate {a}-{b}.",
    "{a}-{b}=?",
    "What is {a} less {b}?",
    "can you subtract {b} from {a}?",
]


def _operands(rng: random.Random, digits: int, mixed: bool = False) -> tuple:
    low, high = (0, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
    a, b = rng.randint(low, high), rng.randint(0 if mixed else low, high // 10 if mixed else high)
    if mixed and rng.random() < 0.5:
        a, b = b, a
    op = rng.choice("+-")
    if op == "+":  # 3 + 5 must not be a test question after 5 + 3 was trained on
        a, b = min(a, b), max(a, b)
    return ("arithmetic", op, a, b)


def make(rng: random.Random, held: bool, digits: int | None = None) -> Example:
    """Both numbers have `digits` digits; without it the length varies and may differ."""
    mixed = digits is None and rng.random() < 0.15
    if digits is None:
        digits = rng.choice((1, 2, 2, 2, 3, 3, 3, 3, 4))
    key = draw_key(rng, held, lambda r: _operands(r, digits, mixed))
    _, op, a, b = key
    if op == "+" and rng.random() < 0.5:
        a, b = b, a
    question = rng.choice(_SUMS if op == "+" else _DIFFERENCES).format(a=a, b=b)
    return Example(f"arithmetic-{digits}", key, turn(question, f"{a} {op} {b} = {a + b if op == '+' else a - b}"))
