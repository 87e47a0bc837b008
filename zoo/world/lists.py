"""Copying, reversing, sorting and counting lists. A changed list is always written "a, b, c"."""

import random
from collections.abc import Callable

from quire.zoo.world.example import Example, draw_key, held_out, turn
from quire.zoo.world.stories import sentence
from quire.zoo.world.words import CITIES, NAMES, WORDS, any_word, distinct, made_up, word

_COPY = [
    "Repeat: {x}",
    "Copy this list: {x}",
    "Copy: {x}",
    "Say exactly this: {x}",
    "Repeat after me: {x}",
    "Write this again: {x}",
    "Please repeat this list: {x}",
    "Echo: {x}",
    "copy {x}",
    "Repeat the following: {x}",
    "Repeat {x}",
    "Say {x}",
]
_COPY_TEXT = [t for t in _COPY if "list" not in t]
_COPY_WORD = ["Repeat the word {x}.", "Say the word {x}", "Repeat the word {x}", "Write the word {x}.", "Say {x}!"]
_REVERSE = [
    "Reverse: {x}",
    "Reverse this list: {x}",
    "Write this list backwards: {x}",
    "Give the items in reverse order: {x}",
    "Please reverse: {x}",
    "reverse {x}",
    "Turn this list around: {x}",
    "Say this list from last to first: {x}",
]
_SORT = [
    "Sort: {x}",
    "Sort this list: {x}",
    "Put in order: {x}",
    "Please sort: {x}",
    "sort {x}",
    "Sort these: {x}",
    "Order this list: {x}",
]
_SORT_WORDS = ["Sort alphabetically: {x}", "Sort these words: {x}", "Put these words in alphabetical order: {x}"]
_SORT_NUMBERS = ["Sort from small to large: {x}", "Sort these numbers: {x}", "Sort ascending: {x}"]
_SORT_DOWN = [
    "Sort from large to small: {x}",
    "Sort descending: {x}",
    "Sort these numbers from largest to smallest: {x}",
]
_COUNT = [
    "Count: {x}",
    "How many items are in this list: {x}",
    "Count the items: {x}",
    "How many words are here: {x}",
    "How long is this list: {x}",
    "count {x}",
    "Please count these: {x}",
    "How many are there: {x}",
]
_COUNT_ONE = [
    "How many times does {w} appear in: {x}",
    "Count {w} in this list: {x}",
    "How often do you see {w} here: {x}",
]


def _items(rng: random.Random, kind: str, longest: int) -> list[str]:
    count = rng.randint(2, longest)
    if kind == "numbers":
        top = rng.choice((20, 99, 99, 999))
        return distinct(rng, lambda r: str(r.randint(0, top)), count)
    if kind == "names":
        return distinct(rng, lambda r: r.choice(NAMES + CITIES), count)
    if kind == "any":
        return distinct(rng, any_word, count)
    if kind == "known":
        return distinct(rng, lambda r: r.choice(WORDS), count)
    return distinct(rng, made_up if kind == "made-up" else lambda r: word(r, 0.3), count)


def _ask(rng: random.Random, templates: list[str], items: list[str], **more: str) -> tuple[str, str]:
    """The question, and the list as it stands in it."""
    separator = rng.choice((", ", ", ", ", ", " ", "\n"))
    text = separator.join(items)
    template = rng.choice(templates)
    if separator == "\n":
        template = template.replace(": {x}", ":\n{x}")
    return template.format(x=text, **more), text


def _text(rng: random.Random) -> str:
    """Sentences, or words in no order with capitals and marks here and there."""
    if rng.random() < 0.5:
        return " ".join(sentence(rng) for _ in range(rng.choice((1, 1, 2))))
    words = [any_word(rng) for _ in range(rng.randint(1, 10))]
    words = [w.capitalize() if rng.random() < 0.2 else w for w in words]
    return " ".join(w + rng.choice(",.!?;:") if rng.random() < 0.15 else w for w in words)


def _copy_key(rng: random.Random, held: bool, draw: Callable[[random.Random], tuple]) -> tuple:
    """A list "a b" and the text "a b" can be the same question; a held-out one is held out as both."""
    while True:
        key = draw_key(rng, held, draw)
        words = [word.strip(",") for part in key[1:] for word in part.split()]
        if not held or (held_out(("copy", *words)) and held_out(("copy", " ".join(words)))):
            return key


def copy(rng: random.Random, held: bool, longest: int = 14) -> Example:
    """Lists and texts, exactly as they were written."""
    if rng.random() < 0.4:
        key = _copy_key(rng, held, lambda r: ("copy", _text(r)))
        return Example("copy", key, turn(rng.choice(_COPY_TEXT).format(x=key[1]), key[1]))
    if rng.random() < 0.08:
        key = _copy_key(rng, held, lambda r: ("copy", any_word(r)))
        return Example("copy", key, turn(rng.choice(_COPY_WORD).format(x=key[1]), key[1]))
    kind = rng.choice(("known", "mixed", "made-up", "numbers", "any"))
    key = _copy_key(rng, held, lambda r: ("copy", *_items(r, kind, longest)))
    return Example("copy", key, turn(*_ask(rng, _COPY, list(key[1:]))))


def reverse(rng: random.Random, held: bool, longest: int = 12) -> Example:
    kind = rng.choice(("known", "mixed", "numbers", "any"))
    key = draw_key(rng, held, lambda r: ("reverse", *_items(r, kind, longest)))
    return Example("reverse", key, turn(_ask(rng, _REVERSE, list(key[1:]))[0], ", ".join(reversed(key[1:]))))


def sort(rng: random.Random, held: bool, longest: int = 12) -> Example:
    kind = rng.choice(("known", "known", "numbers", "numbers", "names"))
    key = draw_key(rng, held, lambda r: ("sort", *_items(r, kind, longest)))
    items = list(key[1:])
    if kind != "numbers":
        return Example("sort", key, turn(_ask(rng, _SORT + _SORT_WORDS, items)[0], ", ".join(sorted(items))))
    down = rng.random() < 0.25
    templates = _SORT_DOWN if down else _SORT + _SORT_NUMBERS
    answer = ", ".join(sorted(items, key=int, reverse=down))
    return Example("sort", key, turn(_ask(rng, templates, items)[0], answer))


def count(rng: random.Random, held: bool, longest: int = 12) -> Example:
    if rng.random() < 0.3:

        def draw(r: random.Random) -> tuple:
            items = _items(r, "known", 6)
            return ("count-one", *(r.choice(items[:3]) for _ in range(r.randint(2, 10))))

        key = draw_key(rng, held, draw)
        items, wanted = list(key[1:]), rng.choice(key[1:])
        n = items.count(wanted)
        return Example(
            "count",
            key,
            turn(_ask(rng, _COUNT_ONE, items, w=wanted)[0], f"{wanted} appears {n} time{'s' if n > 1 else ''}."),
        )
    key = draw_key(rng, held, lambda r: ("count", *_items(r, r.choice(("known", "mixed", "numbers", "any")), longest)))
    return Example("count", key, turn(_ask(rng, _COUNT, list(key[1:]))[0], f"There are {len(key) - 1} items."))
