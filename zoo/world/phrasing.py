"""How people type: polite openings, missing punctuation, lower case, small typos.

Applied to the wording of a question, never to the data in it, and never to the key of the split.
"""

import random

_OPENINGS = [
    "hey, ",
    "hi, ",
    "hello! ",
    "please ",
    "please tell me: ",
    "can you tell me: ",
    "quick question: ",
    "so, ",
    "ok, ",
    "and ",
    "I wonder: ",
    "I would like to know: ",
    "tell me, ",
    "one more thing: ",
    "question: ",
    "um, ",
    "well, ",
    "just curious: ",
    "a question: ",
    "help me: ",
    "do you know: ",
]
_ENDINGS = [
    " please",
    ", please",
    " thanks",
    " Thanks!",
    " Please explain.",
    " Be brief.",
    " I am new to this.",
    "?",
    "??",
    " :)",
    " I keep forgetting.",
    " In one sentence.",
    " in short",
]


def typo(rng: random.Random, text: str) -> str:
    """One slip of the finger in one of the longer words."""
    places = [i for i in range(2, len(text) - 2) if text[i - 1 : i + 2].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def casual(rng: random.Random, text: str) -> str:
    """The same question as another person might have typed it; half of the time unchanged."""
    if rng.random() < 0.45:
        return text
    if rng.random() < 0.35:
        opening = rng.choice(_OPENINGS)
        text = opening + (text[0].lower() + text[1:] if text[1:2].islower() else text)
        text = text[0].upper() + text[1:] if rng.random() < 0.5 else text
    if rng.random() < 0.15:
        text += rng.choice(_ENDINGS)
    if rng.random() < 0.1:
        text = text.replace("-", " ")
    if rng.random() < 0.3:
        text = text.rstrip("?.!")
    if rng.random() < 0.35:
        text = text.lower()
    elif rng.random() < 0.04:
        text = text.upper()
    if rng.random() < 0.25:
        text = typo(rng, text)
        if rng.random() < 0.2:
            text = typo(rng, text)
    return text
