"""Random forms for text, and what says whether a text has the form: hypothesis strategies and independent judges."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
from hypothesis import strategies as st

from quire import StructuredOutputsParams as Form

LETTERS = st.sampled_from('abcé 好🙂"\\{}[],:-.\n')
NAMES = st.sampled_from(["name", "a b", "ключ", 'quo"te', "x"])

scalars = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "number"}, {"const": {"a": [1, "b"]}}]),
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
              st.integers(-50, 50), st.integers(0, 200)),
    st.builds(lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
              st.integers(0, 3), st.integers(0, 5)),
    st.sampled_from(["^[a-c]{1,4}$", "^(ab|é)+$", "^[0-9]{3}$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.lists(st.one_of(st.integers(-9, 9), st.text(LETTERS, max_size=3), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)  # fmt: skip


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in required if name in properties],
        "additionalProperties": False,
    }


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(lambda items, low, span: {"type": "array", "items": items, "minItems": low, "maxItems": low + span},
                  inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=3), st.lists(NAMES, max_size=3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)  # fmt: skip
NODE = _object({"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, ["next"])
LIST = {"$defs": {"node": NODE}, "$ref": "#/$defs/node"}  # a schema that refers to itself

regexes = st.recursive(
    st.one_of(
        st.text(LETTERS, min_size=1, max_size=3).map(re.escape),
        st.sampled_from(["[a-c]", "[^a-z]", "[0-9]", ".", "é"]),
    ),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("(?:{}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])),
    ),
    max_leaves=6,
)

forms = st.one_of(
    st.one_of(schemas, st.just(LIST)).map(lambda schema: Form(json=schema)),
    st.builds(lambda schema: Form(json=schema, disable_any_whitespace=True), schemas),
    st.just(Form(json_object=True)),
    regexes.map(lambda regex: Form(regex=regex)),
    st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=5).map(lambda c: Form(choice=c)),
    st.just(Form(grammar='start: "(" start ")" | "x"+')),
)


def has_form(text: str, form: Form) -> bool:
    """Whether the whole text has the form, by libraries that know nothing of tokens."""
    if form.json is not None or form.json_object:
        value = json.loads(text)
        schema = json.loads(form.json) if isinstance(form.json, str) else {"type": "object"}
        jsonschema.Draft202012Validator(schema).validate(value)
        outside = re.sub(r'"(\\.|[^"\\])*"', "", text)
        return not form.disable_any_whitespace or re.search(r"\s", outside) is None
    if form.regex is not None:
        return re.fullmatch(form.regex, text) is not None
    if form.choice is not None:
        return text in form.choice
    inner = text.strip("()")
    depth = text.count("(")
    return inner == "x" * len(inner) != "" and text == "(" * depth + inner + ")" * depth
