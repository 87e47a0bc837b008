"""/v1/responses through the openai SDK: answers, typed events, tools, parsed objects, remembered conversations."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types.responses import (
    EasyInputMessageParam,
    FunctionToolParam,
    Response,
    ResponseFunctionToolCallParam,
    ResponseInputTextParam,
    ResponseOutputMessageParam,
    ResponseOutputTextParam,
    ResponseReasoningItemParam,
    ResponseStreamEvent,
    ResponseTextConfigParam,
)
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming, StreamOptions
from openai.types.responses.response_input_item_param import FunctionCallOutput
from openai.types.shared_params import Reasoning
from pydantic import BaseModel, TypeAdapter

from quire.server.config import ServerConfig
from quire.server.protocol import responses as protocol
from quire.server.protocol.base import field_table
from tests.server.conftest import PATIENCE, LiveServer, serve
from tests.server.scripted import scripted_engine

GREEDY = {"temperature": 0, "model": "pocket"}
QUESTION = "What is 3 plus 4?"
LIGHT = {
    "type": "function",
    "name": "set_light",
    "description": "Set the light of a room.",
    "strict": None,
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "string"}, "color": {"type": "string"}},
        "required": ["room", "color"],
    },
}
COMMAND = "Set the light of the kitchen to red."
EVENT = TypeAdapter(ResponseStreamEvent)


class Person(BaseModel):
    name: str
    age: int


def sdk(live: LiveServer, kind: type = openai.OpenAI):
    return kind(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def client(server):
    with sdk(server) as client:
        yield client


@pytest.fixture(scope="module")
def thinker():
    """A model that thinks before it answers, and one that calls two tools with words around the calls."""
    call = '<tool_call>\n{{"name": "set_light", "arguments": {{"room": "{}", "color": "red"}}}}\n</tool_call>'
    rules = [
        (lambda prompt: "both rooms" in prompt, f"Sure.\n{call.format('hall')}\n{call.format('attic')}\nThere."),
        (lambda prompt: "seven" in prompt, "<think>\nThree and four.\n</think>\n\nIt is 7."),
    ]
    with serve(engine=scripted_engine(rules), server=ServerConfig(reasoning_parser="qwen3")) as live, sdk(live) as it:
        yield it


def said(output: list) -> list[dict]:
    """Items without what differs from one response to the next, and without what the SDK adds."""
    found = [item.model_dump(exclude={"id", "call_id", "parsed_arguments"}) for item in output]
    for item in found:
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return found


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_sdk_declares(client) -> None:
    raw = client.responses.with_raw_response.create(input=QUESTION, **GREEDY)
    response = Response.model_validate(raw.http_response.json())  # checked, which the SDK itself does not
    assert response.output_text == "3 + 4 = 7" and response.status == "completed"
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_the_chat_endpoint_says_the_same_to_the_same_prompt(client) -> None:
    response = client.responses.create(instructions="You are terse.", input=QUESTION, **GREEDY)
    turns = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(messages=turns, **GREEDY)
    assert response.output_text == chat.choices[0].message.content
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.output_tokens == chat.usage.completion_tokens


def test_the_length_limit_leaves_a_response_incomplete(client) -> None:
    response = client.responses.create(input=QUESTION, max_output_tokens=3, **GREEDY)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete" and response.usage.output_tokens == 3
    events = list(client.responses.create(input=QUESTION, max_output_tokens=3, stream=True, **GREEDY))
    assert events[-1].type == "response.incomplete" and said(events[-1].response.output) == said(response.output)


@pytest.mark.asyncio
async def test_the_async_client_gets_the_same(server, client) -> None:
    expected = client.responses.create(input=QUESTION, **GREEDY)
    async with sdk(server, openai.AsyncOpenAI) as other:
        whole = await other.responses.create(input=QUESTION, **GREEDY)
        async with other.responses.stream(input=QUESTION, **GREEDY) as stream:
            streamed = await stream.get_final_response()
    assert whole.output_text == streamed.output_text == expected.output_text


def test_log_probabilities_come_with_the_text_and_agree_with_chat(client) -> None:
    wanted = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, **GREEDY}
    [part] = client.responses.create(input=QUESTION, **wanted).output[0].content
    turns = [{"role": "user", "content": QUESTION}]
    chat = client.chat.completions.create(messages=turns, logprobs=True, top_logprobs=2, **GREEDY)
    expected = chat.choices[0].logprobs.content
    assert [(p.token, len(p.top_logprobs)) for p in part.logprobs] == [(p.token, 2) for p in expected]
    assert [p.logprob for p in part.logprobs] == pytest.approx([p.logprob for p in expected])
    events = list(client.responses.create(input=QUESTION, stream=True, **wanted))
    streamed = [p for e in events if e.type == "response.output_text.delta" for p in e.logprobs]
    assert [p.token for p in streamed] == [p.token for p in part.logprobs]


# --- events -----------------------------------------------------------------------------------------------------------


def test_the_events_of_a_text(client) -> None:
    events = list(client.responses.create(input=QUESTION, stream=True, **GREEDY))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 0 and kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    "asked",
    [
        {"input": QUESTION},
        {"input": COMMAND, "tools": [LIGHT]},
        {"input": COMMAND, "tools": [LIGHT], "tool_choice": "required"},
        {"input": COMMAND, "tools": [LIGHT], "tool_choice": {"type": "function", "name": "set_light"}},
        {"input": "Hello", "temperature": 1.5, "extra_body": {"seed": 3, "stop": "e"}},
    ],
)
def test_a_stream_adds_up_to_the_whole_response(client, asked) -> None:
    asked = {**GREEDY, "max_output_tokens": 60, **asked}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(stream=True, **asked))
    last = events[-1].response
    assert said(last.output) == said(whole.output) and last.usage.output_tokens == whole.usage.output_tokens
    for index, item in enumerate(last.output):
        mine = [event for event in events if getattr(event, "output_index", None) == index]
        deltas = "".join(event.delta for event in mine if event.type.endswith(".delta"))
        assert deltas == (item.arguments if item.type == "function_call" else item.content[0].text)
        assert mine[0].type == "response.output_item.added" and mine[-1].item == item
    for event in events:  # each is what the SDK declares: nothing is missing, nothing has a wrong type
        EVENT.validate_python(event.to_dict())


def test_reasoning_has_an_item_and_events_of_its_own(thinker) -> None:
    whole = thinker.responses.create(input="seven?", model="pocket", reasoning={"summary": "auto"})
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.output[0].content[0].text == "Three and four." and whole.output_text == "It is 7."
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    events = list(thinker.responses.create(input="seven?", model="pocket", stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Three and four." and said(events[-1].response.output) == said(whole.output)
    for event in events:
        EVENT.validate_python(event.to_dict())


def test_text_and_several_calls_are_items_in_the_models_order(thinker) -> None:
    asked = {"input": "both rooms", "model": "pocket", "tools": [LIGHT]}
    whole = thinker.responses.create(**asked)
    with thinker.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call", "message"]
    assert [json.loads(call.arguments)["room"] for call in whole.output[1:3]] == ["hall", "attic"]
    assert len({call.call_id for call in whole.output[1:3]}) == 2
    assert said(whole.output) == said(streamed.output)
    one = thinker.responses.create(**asked, parallel_tool_calls=False)
    assert [item.type for item in one.output].count("function_call") == 1


# --- tools and forms --------------------------------------------------------------------------------------------------


def test_a_tool_is_called_and_its_result_answered(client) -> None:
    """The embedded model's own skill, with the conversation sent whole by the client."""
    items = [{"role": "user", "content": COMMAND}]
    first = client.responses.create(input=items, tools=[LIGHT], **GREEDY)
    [call] = first.output
    assert call.name == "set_light" and json.loads(call.arguments) == {"room": "kitchen", "color": "red"}
    items += first.output
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"status": "ok"}'})
    assert client.responses.create(input=items, tools=[LIGHT], **GREEDY).output_text == "Done."


def test_a_choice_of_none_calls_nothing(client) -> None:
    response = client.responses.create(input=COMMAND, tools=[LIGHT], tool_choice="none", **GREEDY)
    assert [item.type for item in response.output] == ["message"] and response.tool_choice == "none"


def test_parse_gives_an_object_of_the_class(scripted) -> None:
    with sdk(scripted) as client:
        parsed = client.responses.parse(input="Who is Ada?", model="pocket", text_format=Person)
        with client.responses.stream(input="Who is Ada?", model="pocket", text_format=Person) as stream:
            streamed = stream.get_final_response()
        assert parsed.output_parsed == streamed.output_parsed == Person(name="Ada", age=36)
        sent_back = parsed.output[0].model_dump(warnings=False)  # with the SDK's own field `parsed` in it
        again = [{"role": "user", "content": "Who is Ada?"}, sent_back, {"role": "user", "content": "Ada?"}]
        assert client.responses.parse(input=again, model="pocket", text_format=Person).output_parsed.age == 36


def test_the_form_binds_the_embedded_model(client) -> None:
    colour = {"type": "object", "properties": {"c": {"enum": ["red", "blue"]}}, "required": ["c"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "name": "colour", "schema": colour}
    hot = {"temperature": 1, "max_output_tokens": 200, "model": "pocket", "extra_body": {"seed": 1}}
    response = client.responses.create(input="Hello", text={"format": form}, **hot)
    assert json.loads(response.output_text)["c"] in ("red", "blue")
    response = client.responses.create(input="Hello", text={"format": {"type": "json_object"}}, **hot)
    assert response.output_text.lstrip().startswith("{")


# --- conversations ----------------------------------------------------------------------------------------------------


def test_a_chain_of_responses_is_the_whole_conversation(client) -> None:
    items, previous = [], None
    for word in ("Hello!", QUESTION, "And what is 5 plus 6?"):
        items.append({"role": "user", "content": word})
        chained = client.responses.create(input=word, previous_response_id=previous, **GREEDY)
        whole = client.responses.create(input=items, **GREEDY)
        assert said(chained.output) == said(whole.output)
        assert chained.usage.input_tokens == whole.usage.input_tokens
        items += whole.output
        previous = chained.id


def test_a_chain_goes_on_behind_a_call(client) -> None:
    first = client.responses.create(input=COMMAND, tools=[LIGHT], **GREEDY)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": '{"status": "ok"}'}
    second = client.responses.create(input=[result], previous_response_id=first.id, tools=[LIGHT], **GREEDY)
    assert second.output_text == "Done." and second.previous_response_id == first.id


def test_instructions_are_not_carried_over(client) -> None:
    first = client.responses.create(input="Hello!", instructions="Be a pirate.", **GREEDY)
    second = client.responses.create(input=QUESTION, previous_response_id=first.id, **GREEDY)
    items = [{"role": "user", "content": "Hello!"}, *first.output, {"role": "user", "content": QUESTION}]
    assert client.responses.create(input=items, **GREEDY).usage.input_tokens == second.usage.input_tokens


def test_a_stored_response_is_found_listed_and_deleted(client) -> None:
    first = client.responses.create(input="Hello!", metadata={"topic": "greeting"}, **GREEDY)
    second = client.responses.create(input=QUESTION, previous_response_id=first.id, **GREEDY)
    assert client.responses.retrieve(first.id) == first and first.metadata == {"topic": "greeting"}
    items = list(client.responses.input_items.list(second.id, order="asc", limit=1))  # the SDK turns the pages
    assert [(i.role, i.content[0].text) for i in items] == [
        ("user", "Hello!"),
        ("assistant", first.output_text),
        ("user", QUESTION),
    ]
    newest_first = client.responses.input_items.list(second.id)
    assert [item.id for item in newest_first.data] == [item.id for item in reversed(items)]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    third = client.responses.create(input="Thanks", previous_response_id=second.id, **GREEDY)
    assert third.usage.input_tokens > second.usage.input_tokens  # it took nothing from those that went on from it


def test_a_streamed_response_can_be_gone_on_from(client) -> None:
    with client.responses.stream(input="Hello!", **GREEDY) as stream:
        first = stream.get_final_response()
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_what_is_not_stored_is_not_found(client) -> None:
    response = client.responses.create(input="Hello!", store=False, **GREEDY)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(input="More", previous_response_id=response.id, **GREEDY)
    assert caught.value.param == "previous_response_id" and caught.value.code == "previous_response_not_found"


def test_truncation_drops_the_oldest_turns(client) -> None:
    """And no more of them than it takes. The system message stays."""
    talk = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} " * 60} for i in range(40)]
    items = [{"role": "system", "content": "Count."}, *talk, {"role": "user", "content": QUESTION}]
    asked = {"max_output_tokens": 8, **GREEDY}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(input=items, **asked)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "input"
    kept = client.responses.create(input=items, truncation="auto", **asked)
    ends = [[items[0], *items[begin:]] for begin in range(1, len(items), 2)]
    sizes = [tokens_of(client, end) for end in ends]
    assert kept.usage.input_tokens == max(size for size in sizes if size <= 2048 - 8)


def tokens_of(client, items: list[dict]) -> int:
    body = {"messages": items}
    return client.post("../tokenize", body=body, cast_to=object)["count"]


# --- what is refused --------------------------------------------------------------------------------------------------

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
SECRET = {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}


def content(**part) -> dict:
    return {"input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    "change, param",
    [
        ({"input": []}, "input"),
        ({"input": ["x"]}, "input.0"),
        ({"input": [{"type": {"any": "thing"}}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [CALL | {"arguments": "{"}]}, "input.0.arguments"),
        ({"input": [CALL, {"type": "function_call_output", "call_id": "d", "output": ""}]}, "input.1.call_id"),
        ({"input": [SECRET]}, "input.0.encrypted_content"),
        (content(type="input_image", image_url="x"), "input.0.content.0.image_url"),
        (content(type="input_text"), "input.0.content.0.text"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"tools": [LIGHT, LIGHT]}, "tools"),
        ({"tools": [LIGHT], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [LIGHT], "tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tools": [LIGHT], "top_logprobs": 2}, "top_logprobs"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "odd"}}}}, "text.format"),
        ({"tools": [LIGHT | {"parameters": {"type": "odd"}}], "tool_choice": "required"}, "tools"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**30}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"tempature": 1}}, "tempature"),
        ({"extra_body": {"stream_options": {"include_obfuscation": False}}}, "stream_options"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client, change, param) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"input": "x", **GREEDY, **change})
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error" and caught.value.param == param


def test_a_model_that_is_not_here_is_not_found(client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(input="x", model="nobody")
    assert caught.value.param == "model"


@pytest.mark.parametrize("path", ["", "/input_items"])
def test_unknown_responses_and_questions_about_them(server, client, path) -> None:
    stored = client.responses.create(input="x", max_output_tokens=1, **GREEDY).id
    with server.http() as http:
        unknown = http.get(f"/v1/responses/resp_0{path}")
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "response_not_found"
        for query in ("include[]=message.output_text.logprobs", "colour=red"):
            refused = http.get(f"/v1/responses/{stored}{path}?{query}")
            assert refused.status_code == 400 and refused.json()["error"]["param"] == query.split("=")[0]
        assert http.delete("/v1/responses/resp_0").status_code == 404


@pytest.mark.parametrize(
    "model, params",
    [
        (protocol.ResponsesRequest, ResponseCreateParamsStreaming),
        (protocol.ResponseStreamOptions, StreamOptions),
        (protocol.TextConfig, ResponseTextConfigParam),
        (protocol.Reasoning, Reasoning),
        (protocol.FunctionTool, FunctionToolParam),
        (protocol.MessageItem, EasyInputMessageParam),
        (protocol.MessageItem, ResponseOutputMessageParam),
        (protocol.Part, ResponseInputTextParam),
        (protocol.Part, ResponseOutputTextParam),
        (protocol.FunctionCallItem, ResponseFunctionToolCallParam),
        (protocol.FunctionCallOutputItem, FunctionCallOutput),
        (protocol.ReasoningItem, ResponseReasoningItemParam),
    ],
)
def test_every_field_that_openai_knows_is_classified(model, params) -> None:
    rows = {row.name: row for row in field_table(model)}
    assert set(params.__annotations__) <= set(rows)
    assert all(row.note for row in rows.values() if row.status != "implemented")
