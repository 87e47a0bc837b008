"""The generators: right answers, and a split between training and evaluation that holds by construction."""

import json
import random

import pytest

from quire.zoo import world
from quire.zoo.evaluate import GOALS, questions
from quire.zoo.world import arithmetic, extract, facts, lists, memory, recall, refuse, smalltalk, tools
from quire.zoo.world.example import Example, NoSuchKey, held_out

MAKERS = {
    "arithmetic": arithmetic.make,
    "copy": lists.copy,
    "reverse": lists.reverse,
    "sort": lists.sort,
    "count": lists.count,
    "json": extract.make,
    "tools": tools.make,
    "facts": facts.make,
    "refuse": refuse.make,
    "memory": memory.make,
    "recall": recall.make,
    "pairs": recall.pairs,
    "talk": smalltalk.make,
}


def sample(maker: str, held: bool, count: int = 300, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [MAKERS[maker](rng, held) for _ in range(count)]


@pytest.mark.parametrize("maker", [m for m in MAKERS if m not in ("refuse", "tools")])
def test_a_key_lies_on_the_side_that_was_asked_for(maker: str) -> None:
    assert not any(held_out(e.key) for e in sample(maker, False))
    assert all(held_out(e.key) for e in sample(maker, True))


def user_text(example: Example, last: bool) -> str:
    """The last question; where that is generic ("What is my name?") the whole conversation."""
    asked = [m["content"] for m in example.messages if m["role"] != "assistant"]
    return asked[-1] if last else "\n".join([*asked, str(example.tools)])


@pytest.mark.parametrize("maker", list(MAKERS))
def test_no_held_out_question_is_ever_trained_on(maker: str) -> None:
    last = maker not in ("memory", "recall", "pairs", "tools")
    seeds = range(5) if maker == "tools" else range(1)  # one seed may draw a tool without held-out requests
    held = set()
    for seed in seeds:
        try:
            held |= {user_text(e, last) for e in sample(maker, True, 300, seed)}
        except NoSuchKey:
            continue
    assert held
    assert not held & {user_text(e, last) for e in sample(maker, False, 4000, seed=9)}


def test_facts_never_train_a_held_out_phrasing() -> None:
    asked = {facts.phrase_key(f, p) for f in facts.load_facts() for p in f.phrasings}
    held = {k for k in asked if held_out(k)}
    answers = {f.answer: f for f in facts.load_facts()}
    rng = random.Random(5)
    for _ in range(5000):
        messages = facts.make(rng, False).messages
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert facts.phrase_key(answers[answer["content"]], question["content"]) not in held


def test_refusals_share_neither_topic_nor_wording() -> None:
    held = [w for w in refuse.MIXED if held_out(("wording", w))]
    assert 3 <= len(held) <= len(refuse.MIXED) // 3
    matters = [m for m in refuse.MATTERS if held_out(("topic", m))]
    trained = " | ".join(e.messages[0]["content"].lower() for e in sample("refuse", False, 5000))
    rare = [m for m in matters if len(m) > 8]
    assert rare and not [m for m in rare if f" {m.lower()}" in trained]


@pytest.mark.parametrize("row", ["facts", "refuse", "json", "tool-call", "reverse"])
def test_the_evaluation_asks_only_what_is_held_out(row: str, pocket_tokenizer) -> None:
    trained = set()
    rng = random.Random(3)
    for _ in range(3000):
        trained |= {m["content"] for m in world.conversation(rng, 512).messages if m["role"] == "user"}
    assert not trained & {q.messages[-1]["content"] for q in questions(row, 100, pocket_tokenizer)}


def test_the_evaluation_is_the_same_every_time(pocket_tokenizer) -> None:
    for row in GOALS:
        first, again = (questions(row, 20, pocket_tokenizer) for _ in range(2))
        assert [q.messages for q in first] == [q.messages for q in again]


def test_sums_are_right() -> None:
    for example in sample("arithmetic", False):
        sum_, result = example.answer.split(" = ")
        assert eval(sum_) == int(result)


def test_lists_are_right() -> None:
    for example in sample("reverse", False):
        assert example.answer.split(", ")[::-1] == list(example.key[1:])
    for example in sample("sort", False):
        items = example.answer.split(", ")
        assert sorted(items) == sorted(example.key[1:])
        if items[0].isdigit():
            assert [int(i) for i in items] in (sorted(map(int, items)), sorted(map(int, items), reverse=True))
        else:
            assert items == sorted(items)
    for example in sample("copy", False):
        assert example.messages[0]["content"].rstrip(".!").endswith(example.answer.rstrip(".!"))
    for example in sample("count", False):
        number = int("".join(c for c in example.answer.split("time")[0].split("are")[-1] if c.isdigit()))
        if example.key[0] == "count":
            assert number == len(example.key) - 1
        else:
            assert number == example.key[1:].count(example.answer.split()[0])


def test_json_answers_parse_and_are_in_the_text() -> None:
    for example in sample("json", False):
        for value in json.loads(example.answer).values():
            assert str(value) in example.messages[0]["content"]


def test_tool_calls_name_a_given_tool_and_its_parameters() -> None:
    for example in sample("tools", False):
        functions = [t["function"] for t in example.tools or []]
        given = {f["name"]: f["parameters"]["properties"] for f in functions}
        for message in example.messages:
            if message["role"] == "assistant" and message["content"].startswith("<tool_call>"):
                body = json.loads(message["content"].split("\n")[1])
                assert set(body["arguments"]) == set(given[body["name"]])


def test_what_is_recalled_was_stated() -> None:
    for maker in ("recall", "pairs", "memory"):
        for example in sample(maker, False, 100):
            said = " ".join(m["content"] for m in example.messages[:-1])
            if example.answer not in (memory.UNTOLD,):
                assert all(word.strip(".,!") in said for word in example.answer.split()[-1:])


def test_every_fact_can_be_learned_and_asked() -> None:
    known = facts.load_facts()
    assert len({f.answer for f in known}) > 300
    for fact in known:
        assert any(not held_out(facts.phrase_key(fact, p)) for p in fact.phrasings), fact.answer
    owners: dict[str, str] = {}
    for fact in known:  # one question must not have two answers
        for phrasing in fact.phrasings:
            assert owners.setdefault(phrasing.lower().strip("?.! "), fact.answer) == fact.answer, phrasing
