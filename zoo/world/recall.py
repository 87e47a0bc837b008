"""Finding a fact that was stated once in a long text, and one pair among many competing pairs.

Training contexts are dense: several facts hide in one text and several questions follow it, because one
question in two thousand tokens teaches too slowly for the copying circuit to form. The evaluation hides one
fact and asks once.
"""

import random
from functools import lru_cache

from quire.zoo.world.example import Example, draw_key, turn
from quire.zoo.world.facts import load_facts
from quire.zoo.world.smalltalk import system_prompt
from quire.zoo.world.stories import sentence, story
from quire.zoo.world.words import (
    ADJECTIVES,
    ANIMALS,
    ATTRIBUTES,
    COLOURS,
    DAYS,
    FOODS,
    JOBS,
    NAMES,
    NOUNS,
    PLACES,
    THINGS,
    city,
    distinct,
    made_up,
    name,
    word,
)

CHARS_PER_TOKEN = 4.0  # of filler text, rounded down so that budgets are kept

_DIGITS = lambda r: str(r.randint(100, 9999))  # noqa: E731


def _value(rng: random.Random) -> str:
    return rng.choice((_DIGITS, word, word, city, made_up, name))(rng)


# statement (also the answer), question, what the key looks like, what the value looks like
_KINDS = [
    ("The secret code of {k} is {v}.", "What is the secret code of {k}?", name, _DIGITS),
    (
        "The password for the {k} is {v}.",
        "What is the password for the {k}?",
        lambda r: f"{r.choice(ADJECTIVES)} {r.choice(NOUNS)}",
        lambda r: word(r, 0.4),
    ),
    ("{k} lives in {v}.", "Where does {k} live?", name, city),
    ("The favourite colour of {k} is {v}.", "What is the favourite colour of {k}?", name, lambda r: r.choice(COLOURS)),
    ("{k} works as a {v}.", "What does {k} work as?", name, lambda r: r.choice(JOBS)),
    ("{k} hid the treasure in the {v}.", "Where did {k} hide the treasure?", name, lambda r: r.choice(PLACES)),
    (
        "The magic word of the {k} is {v}.",
        "What is the magic word of the {k}?",
        lambda r: r.choice(NOUNS),
        lambda r: word(r, 0.5),
    ),
    (
        "The number of the {k} is {v}.",
        "What is the number of the {k}?",
        lambda r: f"{r.choice(ADJECTIVES)} {r.choice(THINGS)}",
        _DIGITS,
    ),
    ("{k} bought a {v}.", "What did {k} buy?", name, lambda r: f"{r.choice(ADJECTIVES)} {r.choice(THINGS)}"),
    ("{k} likes to eat {v}.", "What does {k} like to eat?", name, lambda r: r.choice(FOODS)),
    ("{k} has a {v} as a pet.", "What pet does {k} have?", name, lambda r: r.choice(ANIMALS)),
    (
        "The meeting about the {k} is on {v}.",
        "When is the meeting about the {k}?",
        lambda r: r.choice(NOUNS),
        lambda r: f"{r.choice(DAYS)} at {r.randint(8, 19)}:{r.choice(('00', '15', '30', '45'))}",
    ),
    ("The special number of {k} is {v}.", "What is the special number of {k}?", city, _DIGITS),
    ("The {k} is {v}.", "What is the {k}?", lambda r: f"{r.choice(ATTRIBUTES)} of the {r.choice(NOUNS)}", _value),
    ("The {k} is {v}.", "What's the {k}?", lambda r: f"{r.choice(ATTRIBUTES)} of {name(r)}", _value),
    ("The {k} is {v}.", "What is the {k}?", lambda r: f"{r.choice(NOUNS)} {r.choice(ATTRIBUTES)}", _value),
    (
        "The {k} are {v}.",
        "What are the {k}?",
        lambda r: f"{r.choice(('opening', 'office', 'visiting', 'closing', 'school'))} hours",
        lambda r: f"{r.randint(6, 11)} to {r.randint(1, 9)}",
    ),
    ("{k} has {v}.", "What does {k} have?", name, lambda r: f"{r.randint(2, 99)} {r.choice(NOUNS)}s"),
    (
        "The {k} has {v}.",
        "What does the {k} have?",
        lambda r: f"{r.choice(ADJECTIVES)} {r.choice(THINGS)}",
        lambda r: f"{r.randint(2, 99)} {r.choice(NOUNS)}s",
    ),
    ("The {k} is in the {v}.", "Where is the {k}?", lambda r: r.choice(NOUNS), lambda r: r.choice(PLACES)),
    (
        "The owner of the {k} is {v}.",
        "Who is the owner of the {k}?",
        lambda r: f"{r.choice(ADJECTIVES)} {r.choice(PLACES)}",
        name,
    ),
]
_INTROS = [
    "Read this text.",
    "Here is a text.",
    "Read the notes and answer.",
    "Remember this:",
    "Text:",
    "Keep this in mind:",
    "",
]
_QUESTION_INTROS = ["{q}", "{q}", "Question: {q}", "Now tell me: {q}", "{q} Look in the text."]


@lru_cache(maxsize=1)
def _fact_sentences() -> list[str]:
    return [fact.answer for fact in load_facts()]


def filler(rng: random.Random, chars: int) -> list[str]:
    """Sentences of mixed origin, about `chars` characters in all."""
    parts: list[str] = []
    size = 0
    while size < chars:
        kind = rng.random()
        if kind < 0.7:
            run = [sentence(rng) for _ in range(rng.randint(1, 6))]
        elif kind < 0.85:
            run = story(rng, rng.choice(ANIMALS)).split(". ")
            run = [s if s.endswith(".") else s + "." for s in run]
        else:
            run = rng.sample(_fact_sentences(), rng.randint(1, 3))
        parts += run
        size += sum(len(s) + 1 for s in run)
    while parts and size > chars:
        size -= len(parts.pop()) + 1
    return parts


def _needles(rng: random.Random, held: bool, count: int, asked: int) -> list[tuple[str, str]]:
    """(statement, question) pairs with different questions; the first `asked` are of the wanted side."""
    found: dict[str, str] = {}

    def draw(r: random.Random) -> tuple:
        statement, question, key, value = r.choice(_KINDS)
        k, v = key(r), value(r)
        return ("recall", statement.format(k=k, v=v), question.format(k=k))

    while len(found) < count:
        key = draw_key(rng, held and len(found) < asked, draw)
        found.setdefault(key[2], key[1])
    return [(s, q) for q, s in found.items()]


def make(rng: random.Random, held: bool, tokens: int = 300, dense: bool = True) -> Example:
    """One or many facts in filler of about `tokens` tokens, then one or many questions.

        Where the facts stand is uniform over the text. The text is in the first question, in a turn of its own,
    or the system prompt.
    """
    count = min(max(1, tokens // 40), rng.choice((1, 2, 4, 6, 8, 12, 16))) if dense else 1
    asked = min(count, 10)
    needles = _needles(rng, held, count, asked)
    intro = rng.choice(_INTROS)
    spent = sum(len(s) for s, _ in needles) + sum(len(s) + len(q) + 40 for s, q in needles[:asked])
    parts = filler(rng, max(0, int((tokens - 30) * CHARS_PER_TOKEN) - spent))
    for statement, _ in needles:
        parts.insert(rng.randint(0, len(parts)), statement)
    glue = rng.choice((" ", " ", " ", "\n"))
    text = (intro + rng.choice((" ", "\n")) if intro else "") + glue.join(parts)
    questions = [(rng.choice(_QUESTION_INTROS).format(q=q), s) for s, q in needles[:asked]]
    rng.shuffle(questions)
    where = rng.random()
    messages: list[dict] = []
    if where < 0.65:
        questions[0] = (text + rng.choice(("\n\n", "\n", " ")) + questions[0][0], questions[0][1])
    elif where < 0.8:
        messages += turn(text, "OK, I have read it.")
    else:
        opening = system_prompt(rng) + rng.choice((" ", "\n")) if tokens < 1000 and rng.random() < 0.6 else ""
        messages.append({"role": "system", "content": opening + text})
    for question, answer in questions:
        messages += turn(question, answer)
    return Example("recall", ("recall", needles[0][0], needles[0][1]), messages)


_PAIR_FORMATS = ["{k} {v}", "{k}: {v}", "{k} = {v}", "{k} -> {v}"]
_PAIR_ASK = [
    "What is {k}?",
    "What is the value of {k}?",
    "{k}?",
    "get {k}",
    "Look up {k}.",
    "Which value belongs to {k}?",
    "Find {k}.",
    "Give me {k}.",
]
_PAIR_INTROS = [
    "Here are some pairs:",
    "Remember these pairs:",
    "Pairs:",
    "Table:",
    "Look at this table:",
    "Use this table:",
]


def pairs(rng: random.Random, held: bool, count: int | None = None, dense: bool = True) -> Example:
    """`count` key-value pairs that differ only in their words, then a question for one or (dense) many."""
    count = count or rng.choice((2, 3, 4, 6, 8, 8, 8, 12, 16))
    keys = distinct(
        rng, rng.choice((lambda r: r.choice(NOUNS), lambda r: word(r, 0.4), lambda r: r.choice(NAMES), made_up)), count
    )
    draw_value = rng.choice(
        (
            lambda r: r.choice(NOUNS),
            lambda r: word(r, 0.4),
            lambda r: str(r.randint(0, 99)),
            lambda r: str(r.randint(100, 999)),
            city,
        )
    )
    table = draw_key(rng, held, lambda r: ("pairs", *((k, draw_value(r)) for k in keys)))[1:]
    form = rng.choice(_PAIR_FORMATS)
    lines = [form.format(k=k, v=v) for k, v in table]
    text = rng.choice(_PAIR_INTROS) + rng.choice(("\n", " ")) + rng.choice(("\n", ", ", "; ")).join(lines)
    order = rng.sample(range(count), count if dense else 1)
    if dense and rng.random() < 0.4:  # several at once: the densest signal of all
        wanted = [rng.choice(order) for _ in range(min(2 * count, 16))]
        question = "Give me " + ", ".join(table[i][0] for i in wanted) + "."
        return Example("pairs", ("pairs", *table), turn(f"{text}\n{question}", "\n".join(lines[i] for i in wanted)))
    messages: list[dict] = []
    if rng.random() < 0.15:
        messages = turn(text, "OK, I have read it.")
    for i in order[:10]:
        question = rng.choice(_PAIR_ASK).format(k=table[i][0])
        if not messages:
            question = text + rng.choice(("\n\n", "\n")) + question
        messages += turn(question, lines[i])
    return Example("pairs", ("pairs", *table), messages)
