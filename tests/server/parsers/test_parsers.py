"""Tool calls and reasoning in a model's text: the same result however the text is cut into pieces."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.reference.control.structured import StructuredOutputsParams
from quire.reference.structured.compiler import build_tokenizer, compile_grammar, serialise
from quire.server.parsers import Parsed, Parser, PlainParser, ToolCall, parse
from quire.server.parsers.registry import REASONING, TOOLS, forced_parser, forced_schema, reasoning_parser, tool_format
from tests.toys import byte_tokenizer

HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "}\\"{"}}\n</tool_call>'
ADD = ToolCall("add", '{"a": 1, "b": "}\\"{"}')

TOKENS = build_tokenizer(*serialise(byte_tokenizer()))

FORMATS = {name: form.make for name, form in TOOLS.items()}
FORMATS |= {f"think+{name}": lambda make=form.make: REASONING["qwen3"](make()) for name, form in TOOLS.items()}
FORMATS |= {"r1": lambda: REASONING["deepseek_r1"](PlainParser()), "required": lambda: forced_parser(None)}
FORMATS |= {"named": lambda: forced_parser("add")}


def in_pieces(parser: Parser, pieces: list[str]) -> Parsed:
    parsed = Parsed()
    for piece in pieces:
        for delta in parser.feed(piece):
            parsed.add(delta)
    for delta in parser.finish():
        parsed.add(delta)
    return parsed


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        ("hermes", "Just text.\n", "Just text.\n", []),
        ("hermes", HERMES, "", [ADD]),
        ("hermes", f"Let me see.\n{HERMES}\n{HERMES}\n", "Let me see.", [ADD, ADD]),
        ("hermes", f"{HERMES} Done.", "Done.", [ADD]),
        ("hermes", '<tool_call>{"arguments": {"a": [1]}, "name": "f"}</tool_call>', "", [ToolCall("f", '{"a": [1]}')]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [ToolCall("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
         [ToolCall("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', "", [ToolCall("f", '{"a": 1')]),
        ("hermes", "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ("hermes", "a <tool_ca", "a <tool_ca", []),
        ("hermes", "1 < 2 <tool> x", "1 < 2 <tool> x", []),
        ("llama3_json", '{"name": "f", "parameters": {"a": 1}}', "", [ToolCall("f", '{"a": 1}')]),
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "",
         [ToolCall("f", "{}"), ToolCall("g", "{}")]),
        ("llama3_json", '{"city": "Rome"}', '{"city": "Rome"}', []),
        ("llama3_json", "Hello {there}", "Hello {there}", []),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', "",
         [ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": "}"}[TOOL_CALLS]g{}', "",
         [ToolCall("f", '{"a": "}"}'), ToolCall("g", "{}")]),
        ("mistral", "[1, 2] is a list", "[1, 2] is a list", []),
        ("required", '[{"name": "f", "arguments": {"a": 1}}]', "", [ToolCall("f", '{"a": 1}')]),
        ("named", '{"a": 1}', "", [ToolCall("add", '{"a": 1}')]),
    ],
)  # fmt: skip
def test_what_a_text_means(name: str, text: str, content: str, calls: list[ToolCall]) -> None:
    expected = Parsed(content, "", calls)
    assert parse(FORMATS[name](), text) == expected
    assert in_pieces(FORMATS[name](), list(text)) == expected


@pytest.mark.parametrize(
    ("name", "text", "reasoning", "content"),
    [
        ("qwen3", "<think>\nHm.\n\n</think>\n\nYes.", "Hm.", "Yes."),
        ("qwen3", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("qwen3", "Yes.", "", "Yes."),
        ("qwen3", "<think>cut", "cut", ""),
        ("deepseek_r1", "Hm.\nHm\n</think>\nYes.", "Hm.\nHm", "Yes."),
        ("deepseek_r1", "<think>Hm</think>Yes.", "Hm", "Yes."),
    ],
)
def test_reasoning(name: str, text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        assert in_pieces(REASONING[name](PlainParser()), pieces) == Parsed(content, reasoning, [])


PARTS = [
    HERMES, "<tool_call>", "</tool_call>", "<tool_", "call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "f",
    "<|python_tag|>", '{"name": "f", "arguments": {"x": "é"}}', '{"name": "f", "parameters": {}}', '"name"', "null",
    '"arguments"', "text", "1", "é", "🙂", *'{}[],;:"\\ \n',
]  # fmt: skip


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(PARTS), max_size=14), st.data())
def test_pieces_do_not_matter_and_nothing_raises(name: str, parts: list[str], data: st.DataObject) -> None:
    """Any text, well-formed or not, cut anywhere."""
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    whole = parse(FORMATS[name](), text)
    assert in_pieces(FORMATS[name](), pieces) == whole
    assert in_pieces(FORMATS[name](), list(text)) == whole


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6), lambda x: st.lists(x, max_size=3), max_leaves=5
)


names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
some_calls = st.lists(
    st.tuples(names, st.dictionaries(st.text(max_size=4), json_values, max_size=3)), min_size=1, max_size=3
)


@given(some_calls, st.booleans())
def test_calls_that_were_written_are_the_calls_that_are_read(calls: list[tuple[str, dict]], ascii_only: bool) -> None:
    dumped = [{"name": name, "arguments": arguments} for name, arguments in calls]
    texts = [json.dumps(call, ensure_ascii=ascii_only) for call in dumped]
    written = {
        "hermes": "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts),
        "llama3_json": "; ".join(texts).replace('"arguments"', '"parameters"'),
        "mistral": f"[TOOL_CALLS] [{', '.join(texts)}]",
        "required": f"[{', '.join(texts)}]",
    }
    for name, text in written.items():
        parsed = parse(FORMATS[name](), text)
        assert parsed.content == ""
        assert [(c.name, json.loads(c.arguments)) for c in parsed.tool_calls] == calls, name


def test_the_parser_is_chosen_by_the_chat_template() -> None:
    assert tool_format("auto", "… <tool_call> …") is TOOLS["hermes"]
    assert tool_format("auto", "… [TOOL_CALLS] …") is TOOLS["mistral"]
    assert tool_format("auto", "{{ messages }}") is None and tool_format("none", "<tool_call>") is None
    assert reasoning_parser("auto", "… <think>\n enable_thinking") is REASONING["qwen3"]
    assert reasoning_parser("auto", "… <think>\n") is REASONING["deepseek_r1"]
    assert reasoning_parser("auto", "plain") is None
    for choose in (tool_format, reasoning_parser):
        with pytest.raises(ValueError, match="Choose one of auto, none"):
            choose("nonsense", "")


def test_schemas_of_forced_choices() -> None:
    """A named function's is its parameters; else any of the functions, each with definitions of its own."""
    tools: list[dict] = [
        {"name": name, "parameters": {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": x}}}
        for name, x in {"f": {"type": "integer"}, "g": {"type": "array", "items": {"$ref": "#/$defs/X"}}}.items()
    ]
    tools.append({"name": "h"})
    assert forced_schema(tools, "h", parallel=True)["additionalProperties"] is False
    assert forced_schema(tools, "f", parallel=True) == tools[0]["parameters"]
    schema = forced_schema(tools, None, parallel=False)

    def allowed(name: str, **arguments: object) -> bool:
        by_library = jsonschema.Draft202012Validator(schema).is_valid([{"name": name, "arguments": arguments}])
        matcher = compile_grammar(TOKENS, StructuredOutputsParams(json=schema))
        ids = byte_tokenizer().encode(json.dumps([{"name": name, "arguments": arguments}]))
        by_mask = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
        assert by_library == by_mask
        return by_library

    assert allowed("f", x=1) and not allowed("f", x=[])
    assert allowed("g", x=[[], [[]]]) and not allowed("g", x=1)
    assert allowed("h") and not allowed("h", x=1) and not allowed("i")
    call = {"name": "h", "arguments": {}}
    assert not jsonschema.Draft202012Validator(schema).is_valid([call, call])
    assert jsonschema.Draft202012Validator(forced_schema(tools, None, parallel=True)).is_valid([call, call])
