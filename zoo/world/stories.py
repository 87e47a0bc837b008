"""Little stories from a grammar, and the filler text that facts are hidden in."""

import random

from quire.zoo.world.example import Example, turn
from quire.zoo.world.words import (
    ADJECTIVES,
    ANIMALS,
    FOODS,
    HEROES,
    NATURE,
    PLACES,
    THINGS,
    made_up,
    name,
    word,
)

_ASK = [
    "Tell me a story.",
    "Tell me a story about a {hero}.",
    "Tell me a little story.",
    "A story about a {hero}, please.",
    "Write a short story about a {hero}.",
    "Can you tell a story?",
    "I want a story with a {hero}.",
    "story about a {hero}",
    "Make up a story about a {hero}.",
    "Tell a story",
    "story",
    "a story please",
    "Once upon a time",
    "Please tell me a bedtime story about a {hero}.",
]
_MOODS = """old quiet brave shy clever kind lazy happy proud hungry sleepy curious lucky""".split()


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def story(rng: random.Random, hero: str) -> str:
    """Five to seven sentences: a hero with a wish, a journey, a friend, an end."""
    mood, place, goal = rng.choice(_MOODS), rng.choice(PLACES), rng.choice(THINGS)
    friend, food, who = rng.choice(ANIMALS), rng.choice(FOODS), name(rng, 0.1)
    parts = [
        rng.choice(
            [
                f"Once upon a time there was {_a(mood)} {hero} named {who}.",
                f"In {_a(place)} there lived {_a(mood)} {hero} named {who}.",
            ]
        ),
        rng.choice(
            [
                f"{who} had lost {_a(goal)} and missed it every day.",
                f"One day {who} found an old map of {_a(goal)}.",
                f"{who} wanted nothing more than {_a(goal)}.",
            ]
        ),
        rng.choice(
            [
                f"So {who} walked to the {rng.choice(PLACES)} to look for it.",
                f"So {who} went over the hill and through the {rng.choice(PLACES)}.",
            ]
        ),
    ]
    if rng.random() < 0.5:
        parts.append(
            rng.choice(
                [
                    "Soon it began to rain.",
                    "The night was cold and dark.",
                    "The way was long, but the sun was warm.",
                    f"The wind blew over the {rng.choice(NATURE)}.",
                ]
            )
        )
    parts += [
        rng.choice([f"There {who} met {_a(friend)}, who was hungry.", f"By the road sat {_a(friend)} and cried."]),
        rng.choice(
            [
                f"{who} gave the {friend} some {food}, and the {friend} smiled.",
                f"{who} shared the last {food} with the {friend}.",
            ]
        ),
        rng.choice(
            [
                f"Then the {friend} showed {who} where the {goal} was hidden.",
                f"To say thanks, the {friend} helped {who} to find the {goal}.",
            ]
        ),
        rng.choice(
            [
                "They went home together and were friends ever after.",
                f"From that day on {who} was never alone.",
                f"And the {goal} still stands in the {place} today.",
            ]
        ),
    ]
    return " ".join(parts)


def make(rng: random.Random, held: bool) -> Example:
    """Stories are free text: nothing is held out, and no row of the evaluation asks for one."""
    hero = rng.choice((rng.choice(ANIMALS), rng.choice(HEROES), rng.choice(HEROES), made_up(rng)))
    question = rng.choice(_ASK).format(hero=hero)
    if "a " + hero in question and hero[0] in "aeiou":
        question = question.replace("a " + hero, "an " + hero)
    return Example("story", ("story", question), turn(question, story(rng, hero)))


def sentence(rng: random.Random) -> str:
    """One sentence of filler, in one of many kinds."""
    kind = rng.randrange(16)
    w, c, t, p = word(rng, 0.1), rng.choice, rng.choice(THINGS), rng.choice(PLACES)
    if kind == 0:
        return f"The {c(ADJECTIVES)} {t} stood in the {p} all day."
    if kind == 1:
        return f"{name(rng)} walked to the {p} and looked at the {c(NATURE)}."
    if kind == 2:
        return f"Some people think that {w} is better than {word(rng, 0.1)}."
    if kind == 3:
        return f"It was {_a(c(ADJECTIVES))} morning, and the {c(NATURE)} was {c(ADJECTIVES)}."
    if kind == 4:
        clock = f"{rng.randint(0, 23)}:{rng.randint(10, 59)}"
        return f"{clock} INFO step {rng.randint(1, 999)} took {rng.randint(1, 99)} ms"
    if kind == 5:
        return f"{name(rng)}: did you see the {c(ADJECTIVES)} {c(ANIMALS)} near the {p}?"
    if kind == 6:
        return f"In the {p} one can buy {c(FOODS)}, {c(FOODS)} and {c(FOODS)}."
    if kind == 7:
        return f"Every {c(ANIMALS)} needs {c(FOODS)}, but no {c(ANIMALS)} needs {_a(t)}."
    if kind == 8:
        return f"{name(rng)} and {name(rng)} talked about the {t} for {rng.randint(2, 90)} minutes."
    if kind == 9:
        return " ".join(word(rng, 0.2) for _ in range(rng.randint(3, 8))) + "."
    if kind == 10:
        return f"Behind the {p} there is {_a(c(ADJECTIVES))} {p} with {rng.randint(2, 99)} {c(NATURE)}s."
    if kind == 11:
        return f"When the {c(NATURE)} came, the {c(ANIMALS)} hid under the {t}."
    if kind == 12:
        return f"Nobody knew why the {t} was so {c(ADJECTIVES)}."
    if kind == 13:
        return f"{name(rng)} said that the {c(ANIMALS)} would come back in the evening."
    if kind == 14:
        return f"Chapter {rng.randint(1, 40)} tells how the {w} was brought to the {p}."
    return f"Please put the {c(ADJECTIVES)} {t} back on the {c(THINGS)}."
