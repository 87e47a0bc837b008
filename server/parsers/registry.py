"""Which parsers there are, which one fits a checkpoint, and the JSON schemas of forced tool choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quire.reference.control.errors import ConfigError
from quire.server.parsers import Parser, PlainParser
from quire.server.parsers.reasoning import ThinkParser
from quire.server.parsers.tools import CallsParser, NamedParser


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tool calls.

    make            a new parser for one completion
    special_tokens  its marks are special tokens: the text must be made with skip_special_tokens=False
    sign            what a chat template for this format contains
    id_length       length of its call ids, where the family's own templates insist on one
    """

    make: Callable[[], Parser]
    sign: str
    special_tokens: bool = False
    id_length: int | None = None


TOOLS = {
    "mistral": ToolFormat(lambda: CallsParser(("[TOOL_CALLS]",), names=True), "[TOOL_CALLS]", True, 9),
    "hermes": ToolFormat(lambda: CallsParser(("<tool_call>",), close="</tool_call>"), "<tool_call>"),
    "llama3_json": ToolFormat(lambda: CallsParser(("<|python_tag|>",), bare=True), "<|python_tag|>", True),
}
REASONING: dict[str, Callable[[Parser], Parser]] = {
    "deepseek_r1": lambda inner: ThinkParser(inner, begins_inside=True),
    "qwen3": lambda inner: ThinkParser(inner, begins_inside=False),
}


def tool_format(name: str, template: str) -> ToolFormat | None:
    """The format of ``--tool-call-parser name``; "auto" looks for a format's sign in the chat template."""
    if name == "auto":
        return next((f for f in TOOLS.values() if f.sign in template), None)
    if name == "none":
        return None
    if name not in TOOLS:
        raise ConfigError("tool_call_parser", name, "unknown", f"Choose one of auto, none, {', '.join(TOOLS)}")
    return TOOLS[name]


def reasoning_parser(name: str, template: str) -> Callable[[Parser], Parser] | None:
    """What puts a reasoning parser before another; "auto" looks into the chat template."""
    if name == "auto":
        if "<think>" not in template:
            return None
        name = "qwen3" if "enable_thinking" in template else "deepseek_r1"
    if name == "none":
        return None
    if name not in REASONING:
        raise ConfigError("reasoning_parser", name, "unknown", f"Choose one of auto, none, {', '.join(REASONING)}")
    return REASONING[name]


def forced_parser(function: str | None) -> Parser:
    """The parser for text that ``forced_schema`` held to its form."""
    return CallsParser(bare=True) if function is None else NamedParser(function)


def forced_schema(tools: Sequence[dict[str, Any]], function: str | None, *, parallel: bool) -> dict[str, Any]:
    """What a forced choice must look like: one function's arguments, or a list of calls of any of them.

    ``tools`` are the functions' descriptions: {"name", "parameters", …}.
    """
    if function is not None:
        return _parameters(next(tool for tool in tools if tool["name"] == function))
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        place = f"#/$defs/{tool['name']}"
        definitions[tool["name"]] = _moved(_parameters(tool), place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "arguments": {"$ref": place}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
    if not parallel:
        schema["maxItems"] = 1
    return schema | {"$defs": definitions}


def _moved(schema: Any, place: str) -> Any:
    """A schema that no longer stands at the root, with its references to its own parts made to follow it."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: part if name in ("const", "enum") else _moved(part, place) for name, part in schema.items()}
    if isinstance(target := schema.get("$ref"), str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    """A function without parameters takes an empty object."""
    return tool.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


__all__ = ["PlainParser", "ToolFormat", "forced_parser", "forced_schema", "reasoning_parser", "tool_format"]
