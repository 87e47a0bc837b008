"""Structured outputs and pooling: what is refused, by which field; and that parameters travel between processes."""

from __future__ import annotations

import msgspec
import pytest

from quire import BeamSearchParams, PoolingParams, RequestError, SamplingParams
from quire import StructuredOutputsParams as Form

# what is given: (the field that is named, a part of the message)
BAD = {
    "nothing": (lambda: Form(), "structured_outputs", "none of json, regex"),
    "two": (lambda: Form(regex="a", json_object=True), "structured_outputs", "exactly one"),
    "json_object False": (lambda: Form(json_object=False), "structured_outputs", "none of"),
    "unknown name": (lambda: Form(rgex="a"), "rgex", "Did you mean regex"),
    "no JSON": (lambda: Form(json="{"), "structured_outputs.json", "no JSON"),
    "no schema": (lambda: Form(json="3"), "structured_outputs.json", "neither an object nor a boolean"),
    "NaN": (lambda: Form(json={"minimum": float("nan")}), "structured_outputs.json", "no JSON"),
    "a set": (lambda: Form(json={"enum": {1}}), "structured_outputs.json", "no JSON"),
    "too deep": (lambda: Form(json='{"not":' * 100_000), "structured_outputs.json", "nested too deeply"),
    "empty regex": (lambda: Form(regex=""), "structured_outputs.regex", "not a text"),
    "regex of bytes": (lambda: Form(regex=b"a"), "structured_outputs.regex", "not a text"),
    "half a character": (lambda: Form(regex="\ud800"), "structured_outputs.regex", "surrogate"),
    "too long": (lambda: Form(grammar="x" * 300_000), "structured_outputs.grammar", "too long"),
    "no choice": (lambda: Form(choice=[]), "structured_outputs.choice", "nothing to choose"),
    "empty choice": (lambda: Form(choice=["a", ""]), "structured_outputs.choice", "empty string"),
    "a text as choices": (lambda: Form(choice="yes"), "structured_outputs.choice", "one string"),
    "json_object of text": (lambda: Form(json_object="yes"), "structured_outputs.json_object", "True nor False"),
    "whitespace in a regex": (
        lambda: Form(regex="a", disable_any_whitespace=True),
        "structured_outputs.disable_any_whitespace",
        "no meaning for regex",
    ),
    "whitespace twice": (
        lambda: Form(json_object=True, disable_any_whitespace=True, whitespace_pattern=" "),
        "structured_outputs.whitespace_pattern",
        "disable_any_whitespace is True",
    ),
    "a dict": (lambda: SamplingParams(structured_outputs={"regex": "a"}), "structured_outputs", "StructuredOutputsPar"),
    "beams": (
        lambda: BeamSearchParams(beam_width=2, max_tokens=4, structured_outputs=Form(regex="a")),
        "structured_outputs",
        "unknown beam search parameter",
    ),
    "pooling unknown": (lambda: PoolingParams(pooling="cls"), "pooling", 'Give "mean" or "last"'),
    "pooling of another kind": (lambda: PoolingParams(pooling=["mean"]), "pooling", "no known way"),
    "no dimensions": (lambda: PoolingParams(dimensions=0), "dimensions", "at least 1"),
    "dimensions of another kind": (lambda: PoolingParams(dimensions=2.5), "dimensions", "integer"),
    "normalize of text": (lambda: PoolingParams(normalize="yes"), "normalize", "True nor False"),
    "unknown pooling parameter": (lambda: PoolingParams(normalise=True), "normalise", "Did you mean normalize"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_ones_are_refused_by_name(case):
    make, field, part = BAD[case]
    with pytest.raises(RequestError) as caught:
        make()
    assert caught.value.field == field and part in str(caught.value)


def test_a_schema_is_kept_as_text():
    assert Form(json={"type": "integer"}) == Form(json='{"type":  "integer"}')
    assert Form(json=True).json == "true"


@pytest.mark.parametrize(
    "form",
    [Form(json={"type": "string"}, whitespace_pattern=" ?"), Form(regex="é+"), Form(choice=["a", "b"]),
     Form(grammar='start: "a"'), Form(json_object=True, disable_any_whitespace=True)],
    ids=lambda form: form.kind,
)  # fmt: skip
def test_parameters_survive_the_way_to_another_process(form):
    params = SamplingParams(structured_outputs=form, stop=["x"], logit_bias={3: 1.0}, allowed_token_ids=[1, 2])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize("params", [PoolingParams(), PoolingParams(pooling="last", normalize=False, dimensions=3)])
def test_pooling_parameters_too(params):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=PoolingParams) == params
