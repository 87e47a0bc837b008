"""To take away: a request as curl and as Python, a conversation as JSON and as Markdown. No key is ever in it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pprint import pformat
from typing import Any

# What the openai SDK takes as arguments; the rest are vLLM's names and go into extra_body.
OPENAI = {
    "model", "messages", "n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop",
    "logit_bias", "max_completion_tokens", "max_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", "response_format", "stream", "stream_options",
}  # fmt: skip


def as_curl(url: str, body: dict[str, Any], *, keyed: bool) -> str:
    """A command for a POSIX shell. ``keyed``: the server wants a key, which is taken from ``$QUIRE_API_KEY``."""
    lines = [f"curl {shlex.quote(url + '/v1/chat/completions')}", "  -H 'Content-Type: application/json'"]
    if keyed:
        lines.append('  -H "Authorization: Bearer $QUIRE_API_KEY"')
    lines.append(f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False, indent=2))}")
    return " \\\n".join(lines)


def as_python(url: str, body: dict[str, Any], *, keyed: bool) -> str:
    """A program with the openai SDK."""
    own = {name: value for name, value in body.items() if name in OPENAI}
    extra = {name: value for name, value in body.items() if name not in OPENAI}
    if extra:
        own["extra_body"] = extra
    arguments = "".join(f"    {name}={literal(value)},\n" for name, value in own.items())
    key = 'os.environ["QUIRE_API_KEY"]' if keyed else '"none"'
    return (
        f"{'import os' + chr(10) * 2 if keyed else ''}from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key={key})\n'
        f"answer = client.chat.completions.create(\n{arguments})\n"
        "print(answer.choices[0].message)\n"
    )


def literal(value: Any) -> str:
    """Python source of a value, wrapped and indented to stand behind ``    name=``."""
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")


def as_json(conversation: dict[str, Any]) -> str:
    """The conversation with its settings and measurements."""
    return json.dumps(conversation, ensure_ascii=False, indent=2) + "\n"


def as_markdown(messages: Sequence[dict[str, Any]], model: str) -> str:
    """The conversation to read. Texts stand in fences, so that nothing in them becomes markup."""
    parts = [f"# A conversation with {model}"]
    for message in messages:
        text = message.get("content") or ""
        if message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            text += "\n".join(f"{call['name']}({call['arguments']})" for call in calls)
        parts.append(f"## {message['role']}\n\n{fenced(text)}")
    return "\n\n".join(parts) + "\n"


def fenced(text: str) -> str:
    """A block of text, in a fence longer than any run of backticks in it."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def code_html(title: str, source: str) -> str:
    """Source code on the page, with a button that copies it."""
    return (
        f'<section class="source" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>'
        '<button type="button" data-do="copy">Copy</button></header>'
        f'<pre class="said" tabindex="0">{escape(source)}</pre></section>'
    )
