"""Questions about quire and LLM serving: a few hundred facts (facts.txt), each asked in many ways.

A held-out question is a (fact, phrasing) pair that training never contains, under any opening, ending or
typo.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from quire.zoo.world.example import Example, held_out, turn
from quire.zoo.world.phrasing import casual

_TEMPLATES = {
    "what": [
        "What is {t}?",
        "What does {t} mean?",
        "Explain {t}.",
        "Define {t}.",
        "Tell me about {t}.",
        "What do you know about {t}?",
        "Can you explain {t}?",
        "What is meant by {t}?",
        "Describe {t}.",
        "Give me a definition of {t}.",
        "{t}?",
        "What's {t}?",
        "Could you tell me what {t} is?",
        "I do not know what {t} is.",
        "What exactly is {t}?",
        "Explain {t} to me.",
        "Please describe {t}.",
        "In your words, what is {t}?",
        "what are {t}",
        "{t}: what is that?",
        "I have never heard of {t}.",
        "{t}",
        "Explain {t} like I am five.",
        "Explain {t} in simple words.",
        "Say something about {t}.",
        "What is the meaning of {t}?",
        "Help me understand {t}.",
    ],
    "why": [
        "Why {t}?",
        "Why do we need {t}?",
        "What is {t} good for?",
        "Why is {t} useful?",
        "What is the point of {t}?",
        "Why does {t} matter?",
        "What is the benefit of {t}?",
        "Why would I use {t}?",
        "What is the purpose of {t}?",
        "Why is {t} important?",
        "What does {t} bring?",
        "What are the advantages of {t}?",
        "Give me a reason for {t}.",
        "Why have {t}?",
        "What problem does {t} solve?",
        "What is gained by {t}?",
        "Why should I care about {t}?",
        "Why do people use {t}?",
        "Which problem does {t} solve?",
        "What's the use of {t}?",
    ],
    "how": [
        "How does {t} work?",
        "How is {t} done?",
        "How does {t} do it?",
        "Explain how {t} works.",
        "What is the mechanism of {t}?",
        "How do you implement {t}?",
        "How is {t} implemented?",
        "In which way does {t} work?",
        "What happens in {t}?",
        "Tell me how {t} works.",
        "How exactly does {t} work?",
        "What are the steps of {t}?",
        "Describe how {t} works.",
        "how do {t} work",
        "Can you explain how {t} works?",
        "What is {t} doing inside?",
    ],
}
_FOLLOW_UPS = {
    "what": ["What is that?", "What does that mean?", "And what is it exactly?", "Explain that again.", "What is it?"],
    "why": [
        "Why?",
        "Why is that useful?",
        "Why does it matter?",
        "What is it good for?",
        "And why?",
        "Why do we need it?",
        "What is the point of it?",
        "why is it important?",
    ],
    "how": [
        "How does it work?",
        "How?",
        "And how does that work?",
        "How is it done?",
        "Explain how it works.",
        "how does that work",
    ],
}
_DIFFERENCE = [
    "What is the difference between {a} and {b}?",
    "How do {a} and {b} differ?",
    "{a} vs {b}",
    "Compare {a} and {b}.",
    "{a} or {b}?",
    "How does {a} differ from {b}?",
    "Explain the difference between {a} and {b}.",
    "What distinguishes {a} from {b}?",
    "Is {a} the same as {b}?",
    "{a} versus {b}",
    "difference between {a} and {b}",
    "What is {a} vs {b}?",
    "difference {a} {b}",
]
# words that carry little: a question keeps its meaning without them
_LIGHT = set(
    """a an the is are do does did of in to for with on and i you me please what which how
quire's""".split()
)


@dataclass(frozen=True)
class Fact:
    """`kind` is what, why, how, or q for a fact with its own phrasings."""

    topic: str
    names: tuple[str, ...]
    kind: str
    answer: str
    phrasings: tuple[str, ...]


def phrase_key(fact: Fact, question: str) -> tuple:
    """Capital letters and closing marks make no new phrasing."""
    return ("fact", fact.answer, question.lower().strip("?.! "))


@lru_cache(maxsize=1)
def load_facts() -> list[Fact]:
    """Reads facts.txt; see the comment at its top for the format."""
    facts: list[Fact] = []
    names: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    text = resources.files("quire.zoo.world").joinpath("facts.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("== "):
            names = tuple(line[3:].split(" | "))
        elif line.startswith("q: "):
            questions = tuple(line[3:].split(" | "))
        elif line.startswith("a: "):
            facts.append(Fact(names[0], names, "q", line[3:], questions))
        elif line.startswith("vs "):
            both, answer = line[3:].split(": ", 1)
            a, b = both.split(" / ")
            facts.append(
                Fact(
                    both,
                    (both,),
                    "q",
                    answer,
                    tuple(t.format(a=x, b=y) for t in _DIFFERENCE for x, y in ((a, b), (b, a))),
                )
            )
        elif ": " in line and not line.startswith("#"):
            kind, answer = line.split(": ", 1)
            phrasings = tuple(t.format(t=n) for t in _TEMPLATES[kind] for n in dict.fromkeys(names))
            facts.append(Fact(names[0], names, kind, answer, phrasings))
    return facts + _fallbacks(facts)


def _fallbacks(facts: list[Fact]) -> list[Fact]:
    """Where a topic has no why or how, what it is makes a better answer than a guess."""
    known = {(f.topic, f.kind) for f in facts}
    return [
        Fact(f.topic, f.names, kind, f.answer, tuple(t.format(t=n) for t in _TEMPLATES[kind] for n in f.names))
        for f in facts
        if f.kind == "what"
        for kind in ("why", "how")
        if (f.topic, kind) not in known
    ]


@lru_cache(maxsize=1)
def _by_topic() -> dict[str, list[Fact]]:
    topics: dict[str, list[Fact]] = {}
    for fact in load_facts():
        topics.setdefault(fact.topic, []).append(fact)
    return topics


@lru_cache(maxsize=2)
def _questions(held: bool) -> list[tuple[Fact, list[str]]]:
    """Every fact that has phrasings on this side of the split, with them."""
    pairs = [(f, [p for p in f.phrasings if held_out(phrase_key(f, p)) == held]) for f in load_facts()]
    if not held:  # a fact all of whose phrasings were held out could not be learned
        assert all(p for _, p in pairs)
    return [(f, p) for f, p in pairs if p]


def _lighten(rng: random.Random, question: str) -> str:
    """Drop some of the light words, as in a search box."""
    kept = [w for w in question.split() if w.lower().strip("?.,") not in _LIGHT or rng.random() < 0.4]
    return " ".join(kept) if len(kept) > 1 else question


# Other ways to say the same; each is tried at random on training questions only.
_SYNONYMS = [
    ("which", "what"),
    ("what is", "what's"),
    ("how do i", "how can i"),
    ("how can i", "how to"),
    ("why is", "why's"),
    ("does", "will"),
    ("show", "list"),
    ("tell me about", "describe"),
    ("a lot of", "much"),
    ("large", "big"),
    ("big", "large"),
    ("small", "tiny"),
    ("happens", "goes on"),
    ("use", "take"),
    ("uses", "has"),
    ("has", "have"),
    ("made", "built"),
    ("helps", "is useful"),
    ("change", "alter"),
    ("the output", "the answer"),
    ("the text", "the result"),
    ("good for", "useful for"),
    ("limits", "bounds"),
    ("bad", "wrong"),
    ("quick", "fast"),
    ("called", "named"),
    ("need", "require"),
    ("is meant by", "is"),
    ("who", "which people"),
    ("should i", "do i"),
    ("in quire", "with quire"),
    ("quire's", "the"),
    ("explain", "describe"),
    ("how much", "what amount of"),
]


def _reword(rng: random.Random, question: str) -> str:
    padded = f" {question} "
    for old, new in rng.sample(_SYNONYMS, len(_SYNONYMS)):
        where = padded.lower().find(f" {old} ")
        if where >= 0:
            new = new.capitalize() if padded[where + 1].isupper() else new
            return (padded[: where + 1] + new + padded[where + 1 + len(old) :]).strip()
    return question


def _ask(rng: random.Random, fact: Fact, question: str) -> str:
    """A training question in other words and with slips, but never changed into a held-out one."""
    asked = _reword(rng, question) if rng.random() < 0.3 else question
    asked = _lighten(rng, asked) if rng.random() < 0.12 else asked
    asked = casual(rng, asked)
    return question if held_out(phrase_key(fact, asked)) else asked


def make(rng: random.Random, held: bool) -> Example:
    """One question; in training a third of the time with short follow-ups on the same topic."""
    if held:
        fact, phrasings = rng.choice(_questions(True))
        question = rng.choice(phrasings)
        return Example("facts", phrase_key(fact, question), turn(casual(rng, question), fact.answer))
    fact, phrasings = rng.choice(_questions(False))
    question = rng.choice(phrasings)
    messages = turn(_ask(rng, fact, question), fact.answer)
    if rng.random() < 0.35:
        others = [f for f in _by_topic()[fact.topic] if f is not fact]
        rng.shuffle(others)
        for other in others[: rng.choice((1, 2))]:
            if other.kind in _FOLLOW_UPS and rng.random() < 0.8:
                follow = rng.choice(_FOLLOW_UPS[other.kind])
            else:
                follow = rng.choice([p for p in other.phrasings if not held_out(phrase_key(other, p))])
            messages += turn(_ask(rng, other, follow), other.answer)
    return Example("facts", phrase_key(fact, question), messages)


def statement(rng: random.Random) -> str:
    """Facts of one topic as plain text, for completions without a chat."""
    facts = rng.choice(list(_by_topic().values()))
    return " ".join(f.answer for f in facts if f.kind != "q")
