"""pocket's small world: one module a task, each a function make(rng, held) -> Example.

`conversation` mixes them into training conversations; `quire.zoo.evaluate` draws from the held-out side of
each.
"""

import random

from quire.zoo.world import (
    arithmetic,
    extract,
    facts,
    lists,
    memory,
    recall,
    refuse,
    smalltalk,
    stories,
    tools,
)
from quire.zoo.world.example import Example

__all__ = ["SINGLE", "Example", "conversation", "plain_text"]

# Tasks of a single exchange, which can follow one another in a chat, and how often.
SINGLE = {
    arithmetic.make: 16,
    lists.copy: 7,
    lists.reverse: 7,
    lists.sort: 9,
    lists.count: 6,
    facts.make: 30,
    refuse.make: 20,
    smalltalk.make: 5,
    stories.make: 2,
    extract.make: 8,
}
_MAKERS, _WEIGHTS = list(SINGLE), list(SINGLE.values())


def _single(rng: random.Random, held: bool) -> Example:
    return rng.choices(_MAKERS, weights=_WEIGHTS)[0](rng, held)


def _chat(rng: random.Random, most: int) -> Example:
    """Some single exchanges in a row: what was said before must not disturb the next answer."""
    examples = [_single(rng, held=False) for _ in range(rng.choice((1, 1, 2, 3, 4, most)))]
    return Example("chat", ("chat",), [m for e in examples for m in e.messages])


def _between(rng: random.Random) -> list[dict]:
    return _single(rng, held=False).messages


def conversation(rng: random.Random, longest: int) -> Example:
    """One training conversation of at most about `longest` tokens, from the training side of every split."""
    draw = rng.random()
    if draw < 0.62:
        example = _chat(rng, most=max(1, longest // 128))
    elif draw < 0.70:
        example = memory.make(rng, False, _between if longest > 200 else smalltalk_turn)
    elif draw < 0.77:
        example = tools.make(rng, False)
    elif draw < 0.90:
        example = recall.pairs(rng, False, None if longest >= 512 else rng.choice((2, 3, 4, 6)))
    else:  # lengths uniform, half of the time on a logarithmic scale
        most = longest * 0.95
        tokens = rng.uniform(60, most) if rng.random() < 0.5 else 60 * (most / 60) ** rng.random()
        example = recall.make(rng, False, int(tokens), dense=rng.random() < 0.85)
    if example.task in ("pairs", "recall", "tool-call") and rng.random() < 0.2:
        # what stands in the context must not disturb what comes after
        maker = rng.choice((facts.make, arithmetic.make, smalltalk.make, lists.reverse))
        example.messages += maker(rng, False).messages
    if example.messages[0]["role"] != "system" and rng.random() < 0.25:
        example.messages = [{"role": "system", "content": smalltalk.system_prompt(rng)}, *example.messages]
    return example


def smalltalk_turn(rng: random.Random) -> list[dict]:
    return smalltalk.make(rng, False).messages


def plain_text(rng: random.Random) -> str:
    """Text without a chat, so that plain completions work too."""
    if rng.random() < 0.5:
        return stories.story(rng, rng.choice(stories.ANIMALS))
    return facts.statement(rng)
