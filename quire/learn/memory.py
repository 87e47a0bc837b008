"""Exercises of notebooks 02 (fragmentation), 04 (sharing) and 07 (prefix caching)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.learn.answers import Wrong, call, function, number, one_of
from quire.reference.control.kv_manager import KVManager


def blocks_for(answer: Any) -> str:
    """02-a: blocks that sequences of the given lengths hold."""
    f = function(answer)
    for lengths, size in (([1], 16), ([16], 16), ([17], 16), ([], 16), ([5, 5, 5], 16), ([100, 1, 33], 8), ([7], 1)):
        right = sum(-(-n // size) for n in lengths)
        got = number(call(f, lengths, size))
        if got == right:
            continue
        about = f"{lengths} with blocks of {size}: {got:g} is not it. "
        if got == -(-sum(lengths) // size):
            raise Wrong(about + "Two sequences never share a partly filled block just because there is room in it.")
        if got == sum(n // size for n in lengths):
            raise Wrong(about + "The last block counts even if it is not full.")
        if got == sum(n // size + 1 for n in lengths):
            raise Wrong(about + "A sequence that fills its last block exactly needs no further one yet.")
        raise Wrong(about + "How many blocks does each sequence hold by itself?")
    return "Right: each sequence rounds up on its own, so at most one block of each is partly empty."


def mean_waste(answer: Any) -> str:
    """02-b: empty slots per sequence with blocks of 16, on average over all lengths."""
    hints = {
        8.0: "Close. Can all 16 slots of a sequence's last block be empty?",
        16.0: "That would be a block. The last one holds at least one token.",
        15.0: "That is the worst case. What is the mean of all cases?",
        0.5: "A share of what? Slots are asked for.",
        0.0: "Blocks of one token waste nothing; these have 16 slots.",
    }
    given = number(answer)
    if abs(given - 7.5) < 1e-9:
        return "Right: (16 − 1) / 2. It does not grow with the sequence, so long ones waste next to nothing."
    raise one_of(given, hints, "Not yet. Lengths 1 to 16 leave 15, 14, … slots of the last block empty.")


def copies(answer: Any) -> str:
    """04-a: blocks copied when a prompt is sampled n times. The right number comes from the engine's KVManager."""
    f = function(answer)
    for n, prompt, size in ((4, 20, 16), (1, 20, 16), (2, 20, 16), (4, 32, 16), (6, 1, 16), (3, 100, 8), (3, 96, 8)):
        right = _copies(n, prompt, size)
        got = number(call(f, n, prompt, size))
        if got == right:
            continue
        about = f"n={n}, {prompt} prompt tokens, blocks of {size}: {got:g} is not it. "
        if prompt % size == 0:
            raise Wrong(about + "Which block is written to first when the prompt fills its last one exactly?")
        if got == n:
            raise Wrong(about + "When all others have made a copy, who still holds the block?")
        if got in ((n - 1) * -(-prompt // size), n * -(-prompt // size)):
            raise Wrong(about + "Blocks that are only read are never copied. Which one is written to?")
        raise Wrong(about + "Who writes, into which block, and who else holds it at that moment?")
    return "Right. A copy is made only where somebody else still looks: the last one to write has the block to itself."


def _copies(n: int, prompt: int, size: int) -> int:
    """Fork n - 1 siblings off a prompt and let everybody write one token."""
    kv = KVManager(num_blocks=1000, block_size=size)
    parent = kv.new_table()
    kv.reserve(parent, 0, prompt)
    tables = [parent, *(kv.fork(parent, prompt) for _ in range(n - 1))]
    for table in tables:
        kv.reserve(table, prompt, 1)
    return kv.num_copies


def cached_tokens(answer: Any) -> str:
    """07-a: prompt tokens that need not be computed. Right is what a KVManager finds after it has seen the others."""
    f = function(answer)
    a, b = list(range(40)), list(range(100, 140))
    for earlier, prompt, size in (
        ([a], a[:20], 4),
        ([a], a[:18] + b, 4),
        ([a], a, 16),
        ([b, a], a[:17], 16),
        ([a], b[:1] + a, 4),
        ([a + b], b, 4),
        ([a[:15]], a, 16),
        ([], a, 4),
        ([a[:8] + b, a], a[:8] + b[:4] + a, 4),
    ):
        right = _cached(earlier, prompt, size)
        got = number(call(f, earlier, prompt, size))
        if got == right:
            continue
        common = max((_common(e, prompt) for e in earlier), default=0)
        blocks = {tuple(e[i : i + size]) for e in earlier for i in range(0, len(e) - size + 1, size)}
        anywhere = size * sum(tuple(prompt[i : i + size]) in blocks for i in range(0, len(prompt) - size + 1, size))
        about = f"{len(earlier)} earlier prompts, {len(prompt)} tokens, blocks of {size}: {got:g} is not it. "
        if got == common:
            raise Wrong(about + "The prompts agree that far; but the cache knows full blocks only.")
        if got == anywhere:
            raise Wrong(about + "A block is found by its tokens and by everything before it. Elsewhere it is another.")
        raise Wrong(about + "How many full blocks, from the beginning on, has one and the same earlier prompt?")
    return "Right: the longest common beginning, rounded down to whole blocks."


def _cached(earlier: list[list[int]], prompt: list[int], size: int) -> int:
    kv = KVManager(num_blocks=1000, block_size=size)
    for tokens in [*earlier, prompt]:
        table = kv.new_table()
        admitted = kv.admit(table, tokens, budget=len(tokens))
        assert admitted is not None
        found = admitted.start if admitted.write else admitted.end
        kv.commit(table, tokens, len(tokens))
    return found


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def order_of_parts(answer: Any) -> str:
    """07-b: the parts of a support bot's prompt, in the order that lets most be shared."""
    parts = {"rules", "product", "user", "time", "question"}
    names = list(answer) if isinstance(answer, (list, tuple)) else []
    if set(names) != parts or len(names) != len(parts):
        raise Wrong(f"A list of these five names is wanted, each once: {', '.join(sorted(parts))}.")
    place = {name: i for i, name in enumerate(names)}
    if place["time"] < place["user"]:
        raise Wrong("The time is new in every request: everything behind it is computed anew.")
    if place["question"] < 3:
        raise Wrong("No two questions are alike. What stands behind the question is never found.")
    if place["rules"] > place["product"]:
        raise Wrong("Everybody shares the rules, only buyers of one product its manual. Which goes first?")
    if place["user"] < place["product"]:
        raise Wrong("Two customers with the same product share nothing if the name stands before the manual.")
    return "Right: from what most requests share to what none do. The time and the question may swap places."


CHECKS: dict[str, Callable[[Any], str]] = {
    "02-a": blocks_for,
    "02-b": mean_waste,
    "04-a": copies,
    "07-a": cached_tokens,
    "07-b": order_of_parts,
}
