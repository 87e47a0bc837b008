"""Structured outputs in the engine: whatever a model wants to say, its text has the form that was asked for.

The model is a ghost that takes random tokens among those it may take, which is worse than any real one.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire import SamplingParams
from quire import StructuredOutputsParams as Form
from quire.reference.control.errors import RequestError
from quire.reference.control.request import Event
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.reference.structured.forms import forms, has_form
from tests.toys import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id
VOCAB_SIZE = 400  # more than the tokenizer has
CLOSING = frozenset({END, *(TOKENIZER.convert_tokens_to_ids(c) for c in '"}],)')})


def engine(**config):
    settings = {"max_model_len": 256, "num_blocks": 400, "max_num_seqs": 8} | config
    return ghost_engine(GhostRunner(VOCAB_SIZE, preferred=CLOSING), eos=(END,), tokenizer=TOKENIZER, **settings)


def run(engine) -> dict[tuple[str, int], tuple[str, Event]]:
    """Step until all is done: the text of each sequence and its last event."""
    tokens: dict[tuple[str, int], list[int]] = {}
    last: dict[tuple[str, int], Event] = {}
    while engine.has_unfinished():
        for event in engine.step():
            key = event.request_id, event.index
            assert key not in last or last[key].finish_reason is None, "news of a sequence after its end"
            tokens.setdefault(key, []).extend(event.token_ids)
            last[key] = event
    assert engine.stats().blocks_used == 0 and not len(engine._structured._matchers)
    return {key: (decode(tokens[key]), last[key]) for key in last}


def decode(tokens: list[int]) -> str:
    return TOKENIZER.backend_tokenizer.decode(tokens, skip_special_tokens=True)


def sampling(form: Form | None, **values) -> SamplingParams:
    return SamplingParams(structured_outputs=form, **({"max_tokens": 120, "seed": 0} | values))


prompts = st.lists(st.integers(2, 383), min_size=1, max_size=20)


@given(st.lists(st.tuples(prompts, forms), min_size=1, max_size=4), st.booleans())
def test_finished_text_has_its_form(requests, async_scheduling):
    run_ahead = engine(async_scheduling=async_scheduling, max_num_batched_tokens=16)
    for i, (prompt, form) in enumerate(requests):
        run_ahead.add_request(prompt, sampling(form), request_id=str(i))
    outputs = run(run_ahead)
    assert len(outputs) == len(requests)
    for (request_id, _), (text, end) in outputs.items():
        assert end.finish_reason in ("stop", "length"), end
        form = requests[int(request_id)][1]
        assert end.finish_reason == "length" or has_form(text, form), (text, form)


def served(requests, *, structured=True, **config) -> dict[tuple[str, int], tuple[str, str]]:
    """The texts of requests (prompt, form or None, n), those with a form only if ``structured``, and how they ended."""
    one = engine(**config)
    for i, (prompt, form, n) in enumerate(requests):
        if structured or form is None:
            one.add_request(prompt, sampling(form, n=n, max_tokens=40), request_id=str(i))
    return {key: (text, end.finish_reason) for key, (text, end) in run(one).items()}


@given(st.lists(st.tuples(prompts, st.one_of(forms, st.none()), st.integers(1, 3)), min_size=1, max_size=4))
def test_scheduling_changes_no_text(requests):
    """Run-ahead, small chunks, the prefix cache, and too few blocks, with either mode of preemption."""
    expected = served(requests)
    assert served(requests, async_scheduling=False, enable_prefix_caching=False) == expected
    for mode in ("recompute", "swap"):
        few = {"num_blocks": 40, "max_model_len": 128, "preemption_mode": mode, "max_num_batched_tokens": 8}
        assert served(requests, **few) == expected


@given(st.lists(st.tuples(prompts, st.one_of(forms, st.none()), st.just(1)), min_size=2, max_size=4))
def test_neighbours_are_unchanged(requests):
    together = served(requests)
    for key, text in served(requests, structured=False).items():
        assert together[key] == text


def test_siblings_have_their_own_matchers():
    one = engine()
    one.add_request([5, 6], sampling(Form(choice=["red", "green", "blue", "blueish"]), n=8))
    texts = {text for text, _ in run(one).values()}
    assert len(texts) > 1 and texts <= {"red", "green", "blue", "blueish"}


# what: (form, further parameters, the text or None for any, finish_reason, a part of the message)
CONFLICTS = {
    "ignore_eos ends where nothing can follow": (Form(regex="ab"), {"ignore_eos": True}, "ab", "stop", None),
    "... and goes on where something can": (Form(regex="a+"), {"ignore_eos": True}, "a" * 120, "length", None),
    "min_tokens cannot prolong it": (Form(regex="ab"), {"min_tokens": 50}, "ab", "stop", None),
    "min_tokens within the grammar": (Form(regex="(ab)+"), {"min_tokens": 120}, "ab" * 60, "length", None),
    "allowed tokens that say nothing": (Form(regex="ab"), {"allowed_token_ids": [END]}, "", "error", "leave no token"),
    "allowed tokens without an end": (Form(regex="[ab]"), {"allowed_token_ids": "a"}, "a", "stop", None),
    "bad words that forbid everything": (Form(regex="ab"), {"bad_words_token_ids": "b"}, "a", "error", "no token"),
    "a stop token within the text": (Form(regex="a+b"), {"stop_token_ids": "b"}, None, "stop", None),
    "a bias changes nothing legal": (Form(regex="ab"), {"logit_bias": "a"}, "ab", "stop", None),
}


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("case", CONFLICTS)
def test_conflicts_end_a_sequence_and_nothing_else(case, async_scheduling):
    form, values, text, reason, message = CONFLICTS[case]
    a, b = TOKENIZER.convert_tokens_to_ids(["a", "b"])
    ids = {"a": a, "b": b}
    spelled = {
        "allowed_token_ids": lambda v: [ids.get(v)] if isinstance(v, str) else v,
        "bad_words_token_ids": lambda v: [[ids[v]], [TOKENIZER.convert_tokens_to_ids("ab") or ids[v]]],
        "stop_token_ids": lambda v: [ids[v]],
        "logit_bias": lambda v: {ids[v]: -100.0},
    }
    values = {name: spelled.get(name, lambda v: v)(value) for name, value in values.items()}
    one = engine(async_scheduling=async_scheduling)
    one.add_request([3, 4], sampling(form, **values), request_id="odd")
    one.add_request([3, 4], sampling(Form(choice=["fine"])), request_id="fine")
    outputs = run(one)
    got, end = outputs["odd", 0]
    assert end.finish_reason == reason and (text is None or got == text)
    assert end.error is None if message is None else message in end.error
    assert outputs["fine", 0][0] == "fine"


def test_abort_and_stop_strings_let_go_of_matchers():
    one = engine()
    for name in ("aborted", "stopped", "kept"):
        one.add_request([3, 4], sampling(Form(regex="[ab]{60}"), n=2), request_id=name)
    before = [event for _ in range(5) for event in one.step()]
    assert {event.request_id for event in before} == {"aborted", "stopped", "kept"}
    assert [event.index for event in one.abort_request("aborted")] == [0, 1]
    one.finish("stopped", 0)
    outputs = run(one)
    assert {key: end.finish_reason for key, (_, end) in outputs.items()} == {
        ("stopped", 1): "stop", ("kept", 0): "stop", ("kept", 1): "stop",
    }  # fmt: skip


def test_a_new_grammar_keeps_nobody_waiting():
    """Its request waits, and counts as waiting; it can be aborted; a second one has its grammar at hand."""
    one = engine()
    assert one.add_request([3], sampling(Form(regex="ab")), request_id="first") == "first"
    assert one.has_request("first") and one.has_unfinished() and one.stats().num_waiting == 1
    with pytest.raises(RequestError, match="already in use"):
        one.add_request([3], sampling(None), request_id="first")
    assert [event.finish_reason for event in one.abort_request("first")] == ["abort"]
    assert not one.has_unfinished()
    one.check([3], sampling(Form(regex="ab")))
    one.add_request([3], sampling(Form(regex="ab")), request_id="second")
    assert one.has_request("second") and not one._structured.waiting
    assert run(one)["second", 0][0] == "ab"


def test_a_bad_grammar_ends_its_own_request():
    one = engine()
    one.add_request([3], sampling(Form(regex="("), n=2), request_id="bad")
    one.add_request([3], sampling(Form(regex="ab")), request_id="good")
    outputs = run(one)
    for index in (0, 1):
        end = outputs["bad", index][1]
        assert end.finish_reason == "error" and "structured_outputs.regex" in end.error
    assert outputs["good", 0][0] == "ab"


def test_a_grammar_that_grows_too_large_ends_its_own_request():
    """What only shows while it runs: that the limits on the work of one mask are reached."""
    one = engine()
    one.add_request([3], sampling(Form(regex="[ab]{8}(a?){2000}a{2000}")), request_id="bad")
    one.add_request([3], sampling(Form(regex="ab")), request_id="good")
    outputs = run(one)
    assert outputs["bad", 0][1].finish_reason == "error" and "too many" in outputs["bad", 0][1].error
    assert outputs["good", 0][0] == "ab"


def test_an_engine_without_a_tokenizer_says_so():
    one = ghost_engine(GhostRunner(VOCAB_SIZE))
    with pytest.raises(RequestError, match="given no tokenizer"):
        one.check([3], sampling(Form(regex="ab")))
