"""Inside /v1/responses: items from deltas, the memory's bounds, clients that go away, engines that fail."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.reference.config import EngineConfig
from quire.server import response_store
from quire.server.app import build_app
from quire.server.errors import ApiError
from quire.server.local import LocalEngine
from quire.server.parsers import Delta
from quire.server.response_items import input_items, messages
from quire.server.response_output import ResponseOutput
from quire.server.response_store import ResponseStore, StoredResponse
from tests.reference.ghost import GhostRunner, ghost_engine
from tests.server.conftest import PATIENCE

# --- items and events -------------------------------------------------------------------------------------------------

TEXT = st.text("ab \n", min_size=1, max_size=4)


@st.composite
def spoken(draw) -> list[Delta]:
    """What a parser may say of one completion: calls are numbered, and named by their first delta."""
    deltas: list[Delta] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["content", "reasoning", "call"]), max_size=6)):
        if kind != "call":
            deltas.append(Delta(**{kind: draw(TEXT)}))
            continue
        deltas.append(Delta(call=calls, name=f"f{calls}"))
        deltas += [Delta(call=calls, arguments=text) for text in draw(st.lists(TEXT, max_size=3))]
        calls += 1
    return deltas


def rebuilt(events: list[dict]) -> list[dict]:
    """The items as a client puts them together from what was added and from the deltas alone."""
    items: list[dict] = []
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                items.append(dict(event["item"]))
            case "response.content_part.added":
                items[event["output_index"]]["content"] = [dict(event["part"])]
            case "response.output_text.delta" | "response.reasoning_text.delta":
                items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
            case "response.function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
            case "response.output_item.done":
                items[event["output_index"]]["status"] = event["item"]["status"]
    return items


@given(spoken(), st.booleans())
def test_events_add_up_to_the_items(deltas: list[Delta], complete: bool) -> None:
    output = ResponseOutput(lambda: "call_0")
    events = [event for delta in deltas for event in output.add([delta], None)] + output.end(complete=complete)
    assert rebuilt(json.loads(json.dumps(events))) == output.items
    assert [i["status"] for i in output.items[:-1]] == ["completed"] * (len(output.items) - 1)
    assert output.items[-1]["status"] == ("completed" if complete else "incomplete")


@given(spoken(), st.data())
def test_it_does_not_matter_how_the_answer_comes_in_pieces(deltas: list[Delta], data) -> None:
    whole, pieces = ResponseOutput(lambda: "call_0"), ResponseOutput(lambda: "call_0")
    whole.add(deltas, None)
    whole.end(complete=True)
    while deltas:
        n = data.draw(st.integers(1, len(deltas)))
        pieces.add(deltas[:n], None)
        deltas = deltas[n:]
    pieces.end(complete=True)
    for item in [*whole.items, *pieces.items]:
        item.pop("id")
    assert whole.items == pieces.items


def test_an_item_shown_early_does_not_change_later() -> None:
    """Events wait in a list until they are sent; the items go on growing meanwhile."""
    output = ResponseOutput(lambda: "call_0")
    added, part, _ = output.add([Delta(content="Hello")], None)
    output.end(complete=True)
    assert added["item"]["content"] == [] and added["item"]["status"] == "in_progress"
    assert part["part"]["text"] == ""


def test_what_the_model_said_in_one_go_is_one_turn() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{", "status": "incomplete"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
    ]
    turns = messages(items, 0)
    assert [(turn.role, turn.content) for turn in turns] == [
        ("user", "Hi"),
        ("assistant", "Wait"),
        ("tool", "1"),
        ("assistant", "One"),
        ("assistant", "Two"),
    ]
    assert turns[1].reasoning_content == "Hm." and [c.function.name for c in turns[1].tool_calls] == ["f"]


# --- the memory -------------------------------------------------------------------------------------------------------


def response(name: str, text: str = "") -> StoredResponse:
    return StoredResponse({"id": name, "output": []}, input_items(text))


def held(store: ResponseStore, names: str) -> str:
    found = ""
    for name in names:
        try:
            store.get(name, param="response_id")
        except ApiError:
            continue
        found += name
    return found


def test_the_oldest_make_room() -> None:
    store = ResponseStore(limit=3)
    for name in "abcde":
        store.put(response(name))
    store.delete("d", param="response_id")
    assert held(store, "abcde") == "ce" and len(store) == 2
    store.put(response("f"))
    assert held(store, "abcdef") == "cef"


def test_the_memory_is_bounded_in_bytes_too(monkeypatch) -> None:
    monkeypatch.setattr(response_store, "MAX_BYTES", 1000)
    store = ResponseStore(limit=100)
    for name in "abcdef":
        store.put(response(name, "x" * 200))
        assert store.num_bytes <= 1000
    newest = held(store, "abcdef")
    assert newest and "abcdef".endswith(newest) and newest != "abcdef"
    store.put(response("g", "x" * 2000))  # larger than all the room there is
    assert len(store) == 0 and store.num_bytes == 0


def test_several_processes_are_named_as_a_cause() -> None:
    for processes in (1, 2):
        with pytest.raises(ApiError) as caught:
            ResponseStore(10, processes).get("resp_x", param="previous_response_id")
        assert caught.value.status == 404 and "resp_x" in caught.value.message
        assert ("--api-server-count" in caught.value.message) == (processes > 1)


# --- clients that go away, engines that fail --------------------------------------------------------------------------


async def post(app, body: dict, *, leave_after: int | None = None) -> list[dict]:
    """The events of a streamed response; the client goes away when it has had ``leave_after`` of them."""
    request = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    gone, events = asyncio.Event(), []

    async def receive():
        if request:
            return request.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        assert message.get("status", 200) == 200
        if message.get("body"):
            events.append(json.loads(message["body"].decode().split("data: ", 1)[1]))
        if leave_after is not None and len(events) >= leave_after:
            gone.set()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/responses", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return events


def with_ghost(test, **settings) -> None:
    """Run ``test(app, engine)`` on a ghost that speaks the embedded model's tokens, in one event loop."""
    ghost = ghost_engine(GhostRunner(vocab_size=4096, **settings), block_size=4, num_blocks=257, max_model_len=512)

    async def main(local: LocalEngine) -> None:
        local.client.start()
        await local.client.wait_until_ready(PATIENCE)
        await test(build_app(local.client), local)
        local.client.close()

    with LocalEngine(EngineConfig(), engine=ghost) as local:
        asyncio.run(asyncio.wait_for(main(local), PATIENCE))


@pytest.mark.parametrize("num_events", [1, 3, 5])
def test_a_client_that_goes_away_frees_its_blocks(num_events) -> None:
    async def test(app, local: LocalEngine) -> None:
        steps, step = threading.Semaphore(8), local.engine.step  # enough for five events, not for the whole response
        local.engine.step = lambda: steps.acquire() and step()
        try:
            events = await post(app, {"input": "Hello", "stream": True}, leave_after=num_events)
        finally:
            steps.release(1000)
        kinds = [event["type"] for event in events]
        assert kinds[0] == "response.created" and len(kinds) >= num_events and "response.incomplete" not in kinds
        await local.client.reset_prefix_cache()  # answered after the abort
        assert local.client.num_open == 0 and not local.engine.has_unfinished()
        assert local.engine.stats().blocks_used == 0 and len(app.state.quire.responses) == 0

    with_ghost(test)


def test_when_the_engine_dies_the_stream_ends_as_failed() -> None:
    async def test(app, local: LocalEngine) -> None:
        events = await post(app, {"input": "Hello", "stream": True})
        assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.failed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        failed = events[-1]["response"]
        assert failed["status"] == "failed" and failed["error"]["code"] == "server_error"
        assert "told to fail" in failed["error"]["message"] and len(app.state.quire.responses) == 0

    with_ghost(test, fail_at=12)
