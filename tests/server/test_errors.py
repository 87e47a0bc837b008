"""Bad input: what every endpoint answers. One table; each line is a request, and the error that it gets.

To add an endpoint, give it a good body in ``GOOD``: all that is wrong with any body is then tried on it. What can be
wrong with its own fields goes into a list of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from quire.reference.config import EngineConfig
from quire.server.config import ServerConfig
from tests.server.conftest import serve

MAX_LEN = 64
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, TOKENIZE, DETOKENIZE = "/v1/embeddings", "/tokenize", "/detokenize"

HELLO = [{"role": "user", "content": "Hello"}]
GOOD: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "Hello", "max_tokens": 1},
    CHAT: {"messages": HELLO, "max_tokens": 1},
    RESPONSES: {"input": "Hello", "max_output_tokens": 1, "store": False},
    EMBEDDINGS: {"input": "Hello"},
    TOKENIZE: {"prompt": "Hello"},
    DETOKENIZE: {"tokens": [5]},
}
GET_ONLY = ("/v1/models", "/v1/models/pocket", "/health", "/ready", "/version", "/metrics")

VALUE, MISSING, UNKNOWN = "invalid_value", "missing_required_parameter", "unknown_parameter"
REFUSED, LONG, JSON, MODEL = "unsupported_parameter", "context_length_exceeded", "invalid_json", "model_not_found"


class Case(NamedTuple):
    """A good body with ``change``, or the bytes of another; and param, code and some words of the error."""

    path: str
    change: dict[str, Any] | bytes
    param: str | None
    code: str
    words: str = ""
    status: int = 400


def everywhere(path: str) -> Iterator[Case]:
    """What can be wrong with any body."""
    yield Case(path, b"", None, MISSING, "Missing request body")
    yield Case(path, b"{", None, JSON, "not valid JSON")
    yield Case(path, b"\xff\xfe", None, JSON)
    yield Case(path, b"[" * 100_000, None, JSON, "nested too deeply")
    yield Case(path, b'{"model": ' + b"1" * 6000 + b"}", None, JSON, "endless number")
    for body in (b"[]", b'"text"', b"5", b"null"):
        yield Case(path, body, None, JSON, "not a JSON object")
    yield Case(path, {"model": "gpt-4o"}, "model", MODEL, "'gpt-4o' does not exist. Served here: pocket", 404)
    yield Case(path, {"model": 5}, "model", VALUE, "string (given: 5)")
    yield Case(path, {"maxTokens": 5}, "maxTokens", UNKNOWN, "Unrecognized request argument supplied: maxTokens")
    yield Case(path, {"é" * 10_000: 5}, "é" * 80, UNKNOWN)


ANYWHERE = [case for path in GOOD for case in everywhere(path)]

# Fields of completions and chat completions.
SAMPLING: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": -1}, "temperature", "Give a number in [0, 100]"),
    ({"temperature": "hot"}, "temperature", "number (given: 'hot')"),
    ({"top_p": 0}, "top_p", "(0, 1]"),
    ({"top_p": 1.5}, "top_p", "1.5"),
    ({"top_k": -7}, "top_k", "-7"),
    ({"min_p": 2}, "min_p", "2.0"),
    ({"n": 0}, "n", "from 1 to 4096"),
    ({"n": 1000}, "n", "max_num_seqs"),
    ({"n": 10**9}, "n", "from 1 to 4096"),
    ({"n": 1.5}, "n", "1.5"),
    ({"presence_penalty": 3}, "presence_penalty", "[-2, 2]"),
    ({"frequency_penalty": -3}, "frequency_penalty", "[-2, 2]"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"max_tokens": -1}, "max_tokens", "-1"),
    ({"max_tokens": "5"}, "max_tokens", "integer (given: '5')"),
    ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "3"),
    ({"seed": 1 << 80}, "seed", "18446744073709551615"),
    ({"priority": 1 << 80}, "priority", "of 64 bits"),
    ({"priority": "soon"}, "priority", "'soon'"),
    ({"stop": ""}, "stop", "non-empty"),
    ({"stop": ["a", 5]}, "stop.1", "given: 5"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "99999"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "[]"),
    ({"logit_bias": {"word": 1}}, "logit_bias", "token ids as keys"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "[-100, 100]"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "from 0 to 4095"),
    ({"logit_bias": {"5": "more"}}, "logit_bias", "'more'"),
    ({"prompt_logprobs": 5000}, "prompt_logprobs", "5000"),
    ({"stream": "yes"}, "stream", "'yes'"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "Set stream"),
    ({"stream": True, "use_beam_search": True}, "use_beam_search", "known only at the end"),
    ({"use_beam_search": True, "temperature": 1}, "temperature", "beam search does not sample"),
    ({"length_penalty": 1}, "length_penalty", "Set use_beam_search"),
    ({"cache_salt": ""}, "cache_salt", "at least 1 character"),
    ({"user": 5}, "user", "given: 5"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"shape": "a"}}, "structured_outputs.shape", "Known ones are"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
    ({"guided_regex": "("}, "guided_regex", "unclosed group"),
    ({"guided_json": "{"}, "guided_json", "no JSON"),
    ({"guided_json": {"type": "nonsense"}}, "guided_json", "nonsense"),
    ({"guided_choice": []}, "guided_choice", "nothing to choose from"),
    ({"guided_grammar": "start: nowhere"}, "guided_grammar", "nowhere"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "structured_outputs", "more than one form"),
]
SHARED = [
    Case(path, change, param, VALUE, words) for path in (COMPLETIONS, CHAT) for change, param, words in SAMPLING
] + [
    Case(path, {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", UNKNOWN)
    for path in (COMPLETIONS, CHAT)
]

# A prompt and an input have the same forms.
INPUTS = [
    case
    for path, name in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input"))
    for case in (
        Case(path, {name: None}, name, MISSING, f"'{name}'"),
        Case(path, {name: 5}, name, VALUE, "given: 5"),
        Case(path, {name: []}, name, VALUE, "no prompt"),
        Case(path, {name: ""}, name, VALUE, "empty"),
        Case(path, {name: [[]]}, name, VALUE, "empty"),
        Case(path, {name: ["a", ""]}, f"{name}.1", VALUE, "empty"),
        Case(path, {name: ["a", 5]}, f"{name}.0", VALUE),
        Case(path, {name: [{}] * 1000}, f"{name}.0", VALUE),
        Case(path, {name: [True]}, f"{name}.0", VALUE, "True"),
        Case(path, {name: [1 << 80]}, name, VALUE, "Give ids from 0 to 4095"),
        Case(path, {name: [-1]}, name, VALUE, "Give ids from 0 to 4095"),
        Case(path, {name: [[5], [5, 4096]]}, f"{name}.1", VALUE, "4096: no token of this model, at position 1"),
        Case(path, {name: [5] * (MAX_LEN + 1)}, name, LONG, f"Shorten the prompt to {MAX_LEN - (path == COMPLETIONS)}"),
        Case(path, {name: ["a", "a " * MAX_LEN]}, f"{name}.1", LONG, "tokens"),
        Case(path, json.dumps({name: "\ud800"}).encode(), name, VALUE, "surrogate"),
    )
]

OF_COMPLETIONS = [
    Case(COMPLETIONS, {"suffix": "b"}, "suffix", REFUSED, "Leave it out"),
    Case(COMPLETIONS, {"max_tokens": 0}, "max_tokens", VALUE, "set echo"),
    Case(COMPLETIONS, {"logprobs": -1}, "logprobs", VALUE, "0 to 1024"),
    Case(COMPLETIONS, {"logprobs": True}, "logprobs", VALUE, "True"),
    Case(COMPLETIONS, {"best_of": 10**9}, "best_of", VALUE, "from 1 to 4096"),
    Case(COMPLETIONS, {"n": 3, "best_of": 2}, "best_of", VALUE, "smaller than n=3"),
    Case(COMPLETIONS, {"stream": True, "best_of": 3}, "best_of", VALUE, "known only at the end"),
]

OTHER = {"type": "function", "function": {"name": "other"}}
ANY_JSON = {"type": "json_object"}
CONTINUE = {"continue_final_message": True}
FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
BAD_FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "nonsense"}}}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": "nonsense"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "nonsense"}}}
UNNAMED = {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}
FLAT_SCHEMA = {"type": "json_schema", "name": "thing", "schema": {"type": "nonsense"}}
HUGE = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"description": "x" * 300_000}}}
CALLED = "messages.0.tool_calls.0.function"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
MESSAGES: list[tuple[Any, str, str, str]] = [
    (None, "messages", MISSING, ""),
    ([], "messages", VALUE, "at least 1 item"),
    ("Hello", "messages", VALUE, "list (given: 'Hello')"),
    (["Hello"], "messages.0", VALUE, "an object (given: 'Hello')"),
    ([{"content": "Hello"}], "messages.0.role", MISSING, ""),
    ([*HELLO, {"role": "robot", "content": "a"}], "messages.1.role", VALUE, "'robot'"),
    ([{"role": "user"}], "messages.0.content", VALUE, "missing"),
    ([{"role": "user", "content": 5}], "messages.0.content", VALUE, "given: 5"),
    ([{**HELLO[0], "mood": "good"}], "messages.0.mood", UNKNOWN, ""),
    ([{"role": "user", "content": [IMAGE]}], "messages.0.content.0.image_url", REFUSED, "text only"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text", VALUE, "given: 5"),
    ([{"role": "assistant", "tool_calls": [CALL]}], f"{CALLED}.arguments", VALUE, "not a JSON object"),
    ([{"role": "user", "content": "a " * MAX_LEN}], "messages", LONG, f"max_model_len={MAX_LEN}"),
]
OF_CHAT = [
    *(Case(CHAT, {"messages": messages}, param, code, words) for messages, param, code, words in MESSAGES),
    Case(CHAT, {"max_tokens": 0}, "max_tokens", VALUE, "at least 1"),
    Case(CHAT, {"max_completion_tokens": 2}, "max_tokens", VALUE, "max_completion_tokens=2 is given too"),
    Case(CHAT, {"top_logprobs": 2}, "top_logprobs", VALUE, "Set logprobs"),
    Case(CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", VALUE, "20"),
    Case(CHAT, {"logprobs": 2}, "logprobs", VALUE, "boolean"),
    Case(CHAT, {"functions": [FUNCTION]}, "functions", REFUSED, "Give tools"),
    Case(CHAT, {"function_call": "auto"}, "function_call", REFUSED, "Give tool_choice"),
    Case(CHAT, {"audio": {"voice": "alloy"}}, "audio", REFUSED, "text only"),
    Case(CHAT, {"web_search_options": {}}, "web_search_options", REFUSED, "no access to the web"),
    Case(CHAT, {"modalities": ["text", "audio"]}, "modalities.1", VALUE, "'audio'"),
    Case(CHAT, {"metadata": {"a": 5}}, "metadata.a", VALUE, "given: 5"),
    Case(CHAT, {"tools": [{"type": "web_search"}]}, "tools.0.type", VALUE, "'web_search'"),
    Case(CHAT, {"tools": [{"type": "function"}]}, "tools.0.function", MISSING),
    Case(CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", VALUE, "'a b'"),
    Case(CHAT, {"tools": [FUNCTION, FUNCTION]}, "tools", VALUE, "two functions of one name"),
    Case(CHAT, {"tools": [BAD_FUNCTION], "tool_choice": "required"}, "tools", VALUE, "nonsense"),
    Case(CHAT, {"tool_choice": "auto"}, "tool_choice", VALUE, "there are no tools"),
    Case(CHAT, {"tools": [FUNCTION], "tool_choice": "maybe"}, "tool_choice", VALUE, "'maybe'"),
    Case(CHAT, {"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice.function", MISSING),
    Case(CHAT, {"tools": [FUNCTION], "tool_choice": OTHER}, "tool_choice", VALUE, "Name one of look_up"),
    Case(CHAT, {"tools": [FUNCTION], "response_format": ANY_JSON}, "tool_choice", VALUE, "cannot be a tool call"),
    Case(CHAT, {"response_format": SCHEMA}, "response_format", VALUE, "nonsense"),
    Case(CHAT, {"response_format": HUGE}, "response_format", VALUE, "too long"),
    Case(CHAT, {"response_format": SCHEMA, "stream": True}, "response_format", VALUE, "nonsense"),
    Case(CHAT, {"response_format": UNNAMED}, "response_format.json_schema.name", VALUE, "'a b'"),
    Case(CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", VALUE, "missing"),
    Case(CHAT, {"response_format": {"type": "xml"}}, "response_format.type", VALUE, "'xml'"),
    Case(CHAT, {"response_format": ANY_JSON, "guided_regex": "a"}, "response_format", VALUE, "one of the two"),
    Case(CHAT, {**CONTINUE, "add_generation_prompt": True}, "continue_final_message", VALUE, "one of the two"),
    Case(CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", VALUE, "'messages'"),
    Case(CHAT, {"chat_template": "{{ 1 }}"}, "chat_template", UNKNOWN),
]

OF_EMBEDDINGS = [
    Case(EMBEDDINGS, {"dimensions": 0}, "dimensions", VALUE, "at least 1"),
    Case(EMBEDDINGS, {"dimensions": 257}, "dimensions", VALUE, "Give at most 256"),
    Case(EMBEDDINGS, {"dimensions": 1 << 70}, "dimensions", VALUE),
    Case(EMBEDDINGS, {"encoding_format": "int8"}, "encoding_format", VALUE, "'float' or 'base64'"),
    Case(EMBEDDINGS, {"pooling": "max"}, "pooling", VALUE, "'mean' or 'last'"),
    Case(EMBEDDINGS, {"normalize": True, "use_activation": False}, "normalize", VALUE, "one of the two"),
    Case(EMBEDDINGS, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", VALUE, "at least 1, or -1"),
    Case(EMBEDDINGS, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", VALUE, "-2"),
    Case(EMBEDDINGS, {"truncation_side": "left"}, "truncation_side", VALUE, "truncate_prompt_tokens"),
    Case(EMBEDDINGS, {"messages": HELLO}, "messages", REFUSED, "/tokenize"),
    Case(EMBEDDINGS, {"embed_dtype": "float16"}, "embed_dtype", REFUSED, "float32"),
    Case(EMBEDDINGS, {"endianness": "big"}, "endianness", REFUSED, "little-endian"),
]

OF_RESPONSES = [
    Case(RESPONSES, {"input": None}, "input", MISSING),
    Case(RESPONSES, {"input": 5}, "input", VALUE, "given: 5"),
    Case(RESPONSES, {"input": []}, "input", VALUE, "no items"),
    Case(RESPONSES, {"input": ["Hello"]}, "input.0", VALUE),
    Case(RESPONSES, {"input": [{"role": "robot", "content": "a"}]}, "input.0.role", VALUE, "'robot'"),
    Case(RESPONSES, {"input": "a " * MAX_LEN}, "input", LONG, f"max_model_len={MAX_LEN}"),
    Case(RESPONSES, {"max_output_tokens": 0}, "max_output_tokens", VALUE, "given: 0"),
    Case(RESPONSES, {"temperature": -1}, "temperature", VALUE, "Give a number in [0, 100]"),
    Case(RESPONSES, {"background": True}, "background", VALUE, "Leave it out"),
    Case(RESPONSES, {"conversation": "c"}, "conversation", REFUSED, "previous_response_id"),
    Case(RESPONSES, {"tools": [{"type": "web_search"}]}, "tools.0.type", VALUE, "runs no tools itself"),
    Case(RESPONSES, {"tool_choice": "required"}, "tool_choice", VALUE, "there are no tools"),
    Case(
        RESPONSES,
        {"text": {"format": SCHEMA["json_schema"] | {"type": "json_schema"}}},
        "text.format",
        VALUE,
        "nonsense",
    ),
]

OF_TOKENIZE = [
    Case(TOKENIZE, {"prompt": None}, "prompt", VALUE, "Give prompt or messages"),
    Case(TOKENIZE, {"prompt": 5}, "prompt", VALUE, "given: 5"),
    Case(TOKENIZE, {"messages": HELLO}, "prompt", VALUE, "messages are given too"),
    Case(TOKENIZE, {"tools": [FUNCTION]}, "tools", VALUE, "no effect on a prompt"),
    Case(TOKENIZE, {"chat_template": "{{ 1 }}"}, "chat_template", REFUSED, "--chat-template"),
    Case(DETOKENIZE, {"tokens": None}, "tokens", MISSING),
    Case(DETOKENIZE, {"tokens": "abc"}, "tokens", VALUE, "'abc'"),
    Case(DETOKENIZE, {"tokens": [5, "a"]}, "tokens.1", VALUE, "'a'"),
    Case(DETOKENIZE, {"tokens": [5, 4096]}, "tokens", VALUE, "4096: no token of this model, at position 1"),
]

CASES = [*ANYWHERE, *SHARED, *INPUTS, *OF_COMPLETIONS, *OF_CHAT, *OF_RESPONSES, *OF_EMBEDDINGS, *OF_TOKENIZE]


@pytest.fixture(scope="module")
def live():
    config = EngineConfig(max_model_len=MAX_LEN, num_blocks=64, max_num_seqs=16, max_num_batched_tokens=64)
    with serve(config, server=ServerConfig(tool_call_parser="hermes")) as one:
        yield one


@pytest.fixture(scope="module")
def http(live) -> Iterator[httpx.Client]:
    with live.http() as client:
        yield client


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """OpenAI's error object, complete."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 1000
    assert "Traceback" not in error["message"]
    return error


def name(case: Case) -> str:
    change = case.change.decode(errors="replace") if isinstance(case.change, bytes) else json.dumps(case.change)
    return f"{case.path} {change[:60]}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_bad_input(http: httpx.Client, case: Case) -> None:
    body = case.change if isinstance(case.change, bytes) else json.dumps({**GOOD[case.path], **case.change}).encode()
    error = error_of(http.post(case.path, content=body, headers={"Content-Type": "application/json"}), case.status)
    assert (error["param"], error["code"]) == (case.param, case.code), error
    assert case.words in error["message"]


@pytest.mark.parametrize("path", GOOD)
def test_the_bodies_that_the_table_spoils_are_good(http: httpx.Client, path: str) -> None:
    assert http.post(path, json=GOOD[path]).status_code == 200


@pytest.mark.parametrize("path", GOOD)
def test_a_body_that_is_not_declared_as_json(http: httpx.Client, path: str) -> None:
    for options in ({"content": json.dumps(GOOD[path])}, {"data": {"prompt": "a"}}):
        assert error_of(http.post(path, **options), 400)["code"] == JSON


@pytest.mark.parametrize("method, path", [("GET", p) for p in GOOD] + [("POST", p) for p in GET_ONLY])
def test_wrong_method(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["Allow"] in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nowhere", "/v1/chat/completion", "/v1/completions/5", "/%00"])
def test_unknown_path(http: httpx.Client, path: str) -> None:
    for method in ("GET", "POST"):
        assert error_of(http.request(method, path), 404)["code"] == "unknown_url"


def test_a_refused_request_leaves_nothing_behind(live, http: httpx.Client) -> None:
    """All lines of the table have gone through this server."""
    http.post(COMPLETIONS, json=GOOD[COMPLETIONS])
    assert live.state.engine.num_open == 0
    assert not live.engine.has_unfinished()


def test_every_endpoint_is_in_the_table() -> None:
    from tests.server.toy_app import toy_app

    paths = toy_app().openapi()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    assert posts - {"/length"} == {*GOOD, "/reset_prefix_cache"}
