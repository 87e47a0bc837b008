"""Facts that the user tells about themselves in one turn and asks back in a later one."""

import random
from collections.abc import Callable
from functools import lru_cache

from quire.zoo.world.example import Example, NoSuchKey, draw_key, turn
from quire.zoo.world.phrasing import casual
from quire.zoo.world.words import ANIMALS, COLOURS, FOODS, JOBS, MONTHS, city, made_up, name, word

Between = Callable[[random.Random], list[dict]]


def _one_of(rng: random.Random, words: list[str]) -> str:
    """Mostly a word of the list; now and then a made-up one, so that copying is learned and not the list."""
    return made_up(rng) if rng.random() < 0.2 else rng.choice(words)


# attribute -> statements, questions, answer, how to draw a value
_ABOUT: dict[str, tuple[list[str], list[str], str, Callable[[random.Random], str]]] = {
    "name": (
        [
            "My name is {v}.",
            "I am {v}.",
            "I'm {v}.",
            "Hi, I am {v}.",
            "Call me {v}.",
            "Hello! My name is {v}.",
            "my name is {v}",
        ],
        [
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you remember my name?",
            "what is my name",
            "Tell me my name.",
        ],
        "Your name is {v}.",
        lambda r: name(r, 0.5),
    ),
    "city": (
        ["I live in {v}.", "I am from {v}.", "My home is {v}.", "My city is {v}."],
        ["Where do I live?", "Which city do I live in?", "What is my city?", "where am I from?"],
        "You live in {v}.",
        lambda r: city(r, 0.4),
    ),
    "colour": (
        ["My favourite colour is {v}.", "I like {v} best of all colours.", "My favorite color is {v}."],
        ["What is my favourite colour?", "Which colour do I like?", "What's my favorite color?"],
        "Your favourite colour is {v}.",
        lambda r: _one_of(r, COLOURS),
    ),
    "food": (
        ["My favourite food is {v}.", "I love to eat {v}.", "My favorite food is {v}."],
        ["What is my favourite food?", "What do I love to eat?", "What's my favorite food?"],
        "Your favourite food is {v}.",
        lambda r: _one_of(r, FOODS),
    ),
    "job": (
        ["I work as a {v}.", "I am a {v}.", "My job is {v}."],
        ["What is my job?", "What do I do for a living?", "what do I work as?"],
        "You work as a {v}.",
        lambda r: _one_of(r, JOBS),
    ),
    "pet": (
        ["I have a {v}.", "My pet is a {v}.", "I own a {v}."],
        ["What pet do I have?", "Which animal do I have?", "What is my pet?"],
        "You have a {v}.",
        lambda r: _one_of(r, ANIMALS),
    ),
    "age": (
        ["I am {v} years old.", "My age is {v}.", "I'm {v} years old."],
        ["How old am I?", "What is my age?", "Tell me my age."],
        "You are {v} years old.",
        lambda r: str(r.randint(5, 99)),
    ),
    "number": (
        ["My lucky number is {v}.", "My number is {v}."],
        ["What is my lucky number?", "What is my number?"],
        "Your number is {v}.",
        lambda r: str(r.randint(1, 9999)),
    ),
    "month": (
        ["I was born in {v}.", "My birthday is in {v}."],
        ["When was I born?", "When is my birthday?"],
        "Your birthday is in {v}.",
        lambda r: _one_of(r, MONTHS),
    ),
    "code": (
        ["My code word is {v}.", "Remember the word {v}.", "Please remember this word: {v}."],
        ["What is my code word?", "Which word should you remember?", "What was the word?"],
        "Your word is {v}.",
        lambda r: word(r, 0.5) if r.random() < 0.7 else made_up(r),
    ),
}
ACKNOWLEDGE = "Thanks, I will remember that."
UNTOLD = "You have not told me that yet."


def _acknowledge(attribute: str, value: str) -> str:
    return f"Nice to meet you, {value}!" if attribute == "name" else ACKNOWLEDGE


def _draw_value(rng: random.Random, held: bool, attribute: str) -> str:
    draw = _ABOUT[attribute][3]
    return draw_key(rng, held, lambda r: ("memory", attribute, draw(r)))[2]


@lru_cache
def _has_held_out(attribute: str) -> bool:
    """Of a dozen months, say, it may be that the split holds none out."""
    try:
        return bool(_draw_value(random.Random(0), True, attribute))
    except NoSuchKey:
        return False


def make(rng: random.Random, held: bool, between: Between | None = None) -> Example:
    """One to four statements, then turns about other things (`between`), then the questions."""
    attributes = rng.sample([a for a in _ABOUT if not held or _has_held_out(a)], rng.choice((1, 1, 2, 3, 4)))
    told = {attribute: _draw_value(rng, held, attribute) for attribute in attributes}
    messages: list[dict] = []
    if len(told) > 1 and rng.random() < 0.4:  # all in one breath
        text = " ".join(rng.choice(_ABOUT[a][0]).format(v=v) for a, v in told.items())
        messages += turn(text, _acknowledge("name", told["name"]) if "name" in told else ACKNOWLEDGE)
    else:
        for attribute, value in told.items():
            messages += turn(rng.choice(_ABOUT[attribute][0]).format(v=value), _acknowledge(attribute, value))
            if between and rng.random() < 0.3:
                messages += between(rng)
    if between:
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            messages += between(rng)
    order = rng.sample(attributes, len(attributes))
    if held:  # one question is enough to measure
        order = order[:1]
    elif rng.random() < 0.15:
        other = rng.choice([a for a in _ABOUT if a not in told])
        messages += turn(casual(rng, rng.choice(_ABOUT[other][1])), UNTOLD)
    for attribute in order:
        messages += turn(casual(rng, rng.choice(_ABOUT[attribute][1])), _ABOUT[attribute][2].format(v=told[attribute]))
    return Example("turn-memory", ("memory", order[-1], told[order[-1]]), messages)
