"""The validator: bad and hostile grammars are refused within the limits, each by name, and harm nobody."""

from __future__ import annotations

import asyncio

import pytest

from quire import RequestError
from quire import StructuredOutputsParams as Form
from quire.reference.structured.validator import StructuredValidator
from tests.toys import byte_tokenizer

GOOD = Form(json={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
SLOW = Form(json={"type": "integer", "multipleOf": 9999991})  # an automaton with a state for each remainder
LARGE = Form(json={"type": "integer", "multipleOf": 99991})
ROUND = {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": {}}, "$ref": "#/$defs/d0"}

# what is given: (the form, a part of the message)
BAD = {
    "an open bracket": (Form(regex="("), "unclosed group"),
    "look-around": (Form(regex="a(?!b)"), "look-around"),
    "a regex for no text": (Form(regex=r"[^\x00-\x{10FFFF}]"), "no text can satisfy it"),
    "an unknown type": (Form(json={"type": "strnig"}), "strnig"),
    "an unknown reference": (Form(json={"$ref": "#/$defs/nobody"}), "does not exist"),
    "a reference to elsewhere": (Form(json={"$ref": "http://127.0.0.1:1/schema"}), "not present"),
    "a file": (Form(json={"$ref": "file:///etc/passwd"}), "not present"),
    "a schema that is only itself": (Form(json={"$ref": "#"}), "no text can satisfy it"),
    "false": (Form(json=False), "Unsatisfiable"),
    "an empty range": (Form(json={"type": "integer", "minimum": 5, "maximum": 3}), "minimum (5)"),
    "a bad pattern": (Form(json={"type": "string", "pattern": "["}), "unclosed"),
    "combinations": (
        Form(json={"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(10)]}),
        "too large",
    ),
    "too many properties": (
        Form(json={"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}),
        "max is 2000",
    ),
    "too many ways": (Form(regex="(a?){2000}a{2000}"), "too many expressions"),
    "deep nesting": (Form(json='{"items":' * 200 + "{}" + "}" * 200), "recursion limit"),
    "a long way round": (Form(json=ROUND), "nested too deeply"),
    "a grammar without a rule": (Form(grammar="nonsense"), "structured_outputs.grammar"),
    "an unknown rule": (Form(grammar="start: nobody"), "nobody"),
    "a grammar that never ends": (Form(grammar='start: "a" start'), "Too many items"),
    "rules in a circle": (Form(grammar="start: other\nother: start"), "no text can satisfy it"),
    "a bad whitespace pattern": (Form(json_object=True, whitespace_pattern="("), "unclosed"),
}
# What only looks dangerous: compiled step by step as the text grows, within limits.
HARMLESS = {
    "nested repetitions": Form(json={"type": "string", "pattern": "(a{1,1000}){1,1000}"}),
    "an exponential regex": Form(regex="(x+x+)+y"),
    "a huge enum": Form(json={"enum": [f"value {i}" for i in range(10_000)]}),
    "many choices": Form(choice=[f"value {i}" for i in range(10_000)]),
    "references that double": Form(
        json={
            "$defs": {f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "lr"}} for i in range(40)}
            | {"d40": {"type": "integer"}},
            "$ref": "#/$defs/d0",
        }
    ),
    "true": Form(json=True),
    "a schema that holds itself": Form(json={"type": "array", "items": {"$ref": "#"}}),
}


@pytest.fixture(scope="module")
def validator():
    validator = StructuredValidator(byte_tokenizer, time_limit=60)
    yield validator
    validator.close()


@pytest.mark.parametrize("case", BAD)
def test_bad_ones_are_refused(validator, case):
    form, part = BAD[case]
    for _ in range(2):  # compiled the first time, remembered the second
        with pytest.raises(RequestError) as caught:
            validator.validate(form)
        error = caught.value
        assert error.field == f"structured_outputs.{form.kind}" and part in str(error) and len(str(error)) < 500
    validator.validate(GOOD)


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_ones_pass(validator, case):
    validator.validate(HARMLESS[case])


def test_what_takes_too_long_is_given_up_and_the_next_one_works():
    validator = StructuredValidator(byte_tokenizer, time_limit=0.5)
    with pytest.raises(RequestError, match=r"longer than 0\.5 s"):
        validator.validate(SLOW)
    validator.time_limit = 60  # enough for any machine
    validator.validate(GOOD)
    with pytest.raises(RequestError, match=r"longer than 0\.5 s"):
        validator.validate(SLOW)  # remembered
    validator.close()


@pytest.mark.skipif("sys.platform != 'linux'", reason="memory is limited on Linux only")
def test_what_takes_too_much_memory_is_given_up_and_the_next_one_works():
    validator = StructuredValidator(byte_tokenizer, time_limit=60, memory_limit=8 << 20)
    with pytest.raises(RequestError, match="8 MiB of memory"):
        validator.validate(LARGE)
    validator.validate(GOOD)
    validator.close()


def test_an_event_loop_goes_on_meanwhile():
    validator = StructuredValidator(byte_tokenizer, time_limit=0.5)

    async def scenario() -> tuple[int, list[object]]:
        ticks = 0
        checks = asyncio.gather(validator.check(SLOW), validator.check(Form(regex="(")), return_exceptions=True)
        while not checks.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks, await checks

    ticks, errors = asyncio.run(scenario())
    assert ticks > 5 and all(isinstance(error, RequestError) for error in errors)
    validator.close()


def test_a_worker_that_dies_is_replaced():
    validator = StructuredValidator(byte_tokenizer, time_limit=60)
    validator.validate(GOOD)
    validator._worker.kill()
    validator._worker.wait()
    validator.validate(Form(regex="ab"))
    validator.close()


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(RequestError, match="not a fast one"):
        StructuredValidator(lambda: object()).validate(GOOD)
