"""GET /trace: what a listener is told, when it is told nothing, and that it holds nobody up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quire import SamplingParams
from quire.reference.config import EngineConfig
from quire.reference.control.errors import ConfigError
from quire.reference.trace import SCHEMA_VERSION
from quire.server import messages
from quire.server.config import ServerConfig
from quire.server.trace_feed import BACKLOG, TraceFeed
from quire.server.trace_listeners import MAX_LINES, STEP, Listener, TraceListeners
from tests.reference.ghost import GhostRunner, ghost_engine, run
from tests.server.conftest import PATIENCE, LiveServer, eventually, serve
from tests.server.test_process import quire_serve

PROMPT = {"prompt": [7, 7, 7, 7, 7], "max_tokens": 6, "ignore_eos": True, "seed": 1}


@pytest.fixture
def live() -> Iterator[LiveServer]:
    with serve(engine=ghost_engine(GhostRunner()), server=ServerConfig(enable_trace=True)) as server:
        yield server


@contextmanager
def listening(live, **headers) -> Iterator[Iterator[dict]]:
    """The lines of /trace, as they come."""
    with live.http(headers=headers) as http, http.stream("GET", "/trace") as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line.startswith("data: "))


def complete(live, **fields) -> None:
    with live.http() as http:
        assert http.post("/v1/completions", json=PROMPT | fields).status_code == 200


def until_idle(lines: Iterator[dict]) -> list[dict]:
    """Lines up to the step after which nothing runs."""
    found = []
    for line in lines:
        found.append(line)
        if line["type"] == "step" and not line["stats"]["num_running"] and not line["stats"]["num_waiting"]:
            return found
    raise AssertionError("the stream ended")


def test_a_listener_gets_header_and_state_and_then_every_step(live: LiveServer) -> None:
    complete(live)
    with listening(live) as lines:
        header, state = next(lines), next(lines)
        assert (header["type"], header["v"], header["redacted"]) == ("header", SCHEMA_VERSION, True)
        assert (header["block_size"], header["num_blocks"]) == (4, 65)
        assert state["type"] == "state" and state["sequences"] == [] and state["tables"] == {}
        assert state["step"] == 6 and len(state["cache"]) == 2  # of 5 + 5 computed tokens, in blocks of 4
        complete(live, n=2)
        request, *steps = until_idle(lines)
    assert request["type"] == "request" and request["prompt_len"] == 5 and request["params"]["n"] == 2
    assert [step["plan"]["step"] for step in steps] == list(range(6, 6 + len(steps)))
    assert steps[0]["events"] and sum(event["n"] for step in steps for event in step["events"]) == 12
    assert set(steps[0]["owners"].values()) == {request["request_id"]}
    cached = [block for block in state["cache"] if int(block) in steps[0]["tables"]["0"]]
    assert len(cached) == 1, "the second prompt begins with the first one's block"


def test_one_who_comes_in_the_middle_is_told_where_everything_stands(live: LiveServer) -> None:
    step, seen = live.engine.step, []

    def slowed() -> list:
        if len(seen) == 3 and not live.engine.recorders:
            return []  # until somebody listens
        seen.append(None)
        return step()

    live.engine.step = slowed
    with live.http() as http, http.stream("POST", "/v1/completions", json=PROMPT | {"stream": True, "n": 2}):
        eventually(lambda: len(seen) == 3)
        with listening(live) as lines:
            state = list(zip(range(2), lines))[1][1]
            assert [s["length"] > 5 and s["computed"] >= 5 for s in state["sequences"]] == [True, True]
            assert {s["row"] for s in state["sequences"]} == {int(row) for row in state["tables"]}
            assert [r["request_id"] for r in state["requests"]] == [state["sequences"][0]["request_id"]]
            rest = until_idle(lines)
    assert rest[0]["plan"]["step"] == state["step"]
    tables = state["tables"]
    for step in rest:
        tables |= step["tables"] | step["after"]
    assert set(tables.values()) == {None}, "who has followed the lines sees every block given back"


def test_nothing_is_recorded_unless_somebody_listens(live: LiveServer) -> None:
    complete(live)
    assert not live.engine.recorders
    with listening(live) as first, listening(live) as second:
        next(first), next(second)
        assert len(live.engine.recorders) == 1, "one recording for all"
    eventually(lambda: not live.engine.recorders)
    complete(live)


def test_prompts_and_answers_are_in_the_trace_only_if_asked_for() -> None:
    said = {"prompt": "What is 417 + 268?", "max_tokens": 8}
    for text in (False, True):
        config = EngineConfig(num_blocks=200, max_num_seqs=8)
        with serve(config, server=ServerConfig(enable_trace=True, trace_text=text)) as live, listening(live) as lines:
            header = next(lines)
            complete(live, **said)
            found = until_idle(lines)
        request = next(line for line in found if line["type"] == "request")
        assert header["redacted"] is not text and ("token_ids" in request) is text
        assert request.get("text") == (said["prompt"] if text else None)
        starts = [start for line in found if line["type"] == "step" for start in line["plan"]["starts"]]
        assert isinstance(starts[0]["token_ids"], list) is text
        answer = "".join(e.get("text", "") for line in found if line["type"] == "step" for e in line["events"])
        assert bool(answer) is text


def test_it_is_off_unless_the_server_was_told(server: LiveServer) -> None:
    with server.http() as http:
        response = http.get("/trace")
    error = response.json()["error"]
    assert response.status_code == 404 and error["code"] == "trace_disabled" and error["param"] == "enable_trace"
    assert "--enable-trace" in error["message"]
    with pytest.raises(ConfigError, match="trace_text=True: enable_trace is False"):
        ServerConfig(trace_text=True)


def test_it_is_behind_the_key() -> None:
    config = ServerConfig(enable_trace=True, api_key=("secret",))
    with serve(engine=ghost_engine(GhostRunner()), server=config) as live:
        with live.http() as http:
            assert http.get("/trace").status_code == 401
        with listening(live, Authorization="Bearer secret") as lines:
            assert next(lines)["type"] == "header"


def test_there_is_a_limit_to_listeners(live: LiveServer, monkeypatch) -> None:
    monkeypatch.setattr("quire.server.routes.trace.MAX_LISTENERS", 1)
    with listening(live) as lines, live.http() as http:
        next(lines)
        response = http.get("/trace")
        assert response.status_code == 429 and "1 listeners" in response.json()["error"]["message"]


# --- slowness, at both ends -------------------------------------------------------------------------------------------


async def fetch(listener: Listener, n: int) -> list[bytes]:
    return [await listener.__anext__() for _ in range(n)]


async def test_a_listener_that_does_not_keep_up_is_told_what_it_missed_and_begins_anew() -> None:
    sent: list[messages.ToEngine] = []
    traces = TraceListeners(sent.append)
    traces.engine_ready()
    (slow, slow_one), (fast, fast_one) = traces.add(), traces.add()
    assert sent == [messages.Listen(slow), messages.Listen(fast)]
    traces.begin(slow, [b"header", b"state"])
    traces.begin(fast, [b"header", b"state"])
    step = STEP + b"}"
    for _ in range(MAX_LINES):
        traces.put(step, 0)
        await fetch(fast_one, 1)
    assert sent[2:] == [], "nobody is asked for anything before the slow one reads again"
    traces.put(step, 0)
    assert not slow_one._lines, "what it has not read is let go"

    task = asyncio.ensure_future(slow_one.__anext__())
    while len(sent) == 2:
        await asyncio.sleep(0)
    assert sent[2:] == [messages.Listen(slow)]
    traces.put(step, 0)  # on its way before the state is
    traces.begin(slow, [b"header", b"state"])
    dropped = json.loads(await task)
    assert dropped == {"type": "dropped", "steps": MAX_LINES + 2}
    assert await fetch(slow_one, 2) == [b"header", b"state"]

    traces.remove(slow)
    traces.remove(fast)
    assert sent[3:] == [messages.Unlisten()]


async def test_a_listener_outlives_the_engine() -> None:
    sent: list[messages.ToEngine] = []
    traces = TraceListeners(sent.append)
    number, listener = traces.add()
    assert sent == [], "there is no engine yet"
    traces.engine_ready()
    traces.begin(number, [b"header", b"state"])
    traces.put(b"line", 0)
    traces.engine_lost("it died")
    traces.put(b"stale", 0)
    traces.engine_ready()
    traces.begin(number, [b"new header", b"new state"])
    lines = await fetch(listener, 6)
    assert lines[:3] == [b"header", b"state", b"line"] and lines[4:] == [b"new header", b"new state"]
    assert json.loads(lines[3]) == {"type": "lost", "reason": "it died"}
    traces.close()
    with pytest.raises(StopAsyncIteration):
        await listener.__anext__()


def test_an_api_process_that_reads_slowly_is_sent_the_number_of_steps_it_missed() -> None:
    engine, sent, unread = ghost_engine(GhostRunner()), [], {b"slow": 0, b"fast": 0}
    feed = TraceFeed(engine, lambda identity, message: sent.append((identity, message)), unread.get)
    feed.listen(b"slow", 1, False)
    feed.listen(b"fast", 1, False)
    assert [type(message) for _, message in sent] == [messages.TraceBegin, messages.TraceBegin]
    unread[b"slow"] = BACKLOG + 1
    sent.clear()
    engine.add_request([1, 2], SamplingParams(max_tokens=5))
    run(engine)
    feed.catch_up()
    assert [identity for identity, _ in sent] == [b"fast"] * 6  # the request and five steps
    unread[b"slow"] = 0
    feed.catch_up()
    feed.catch_up()
    assert sent[6:] == [(b"slow", messages.TraceLine(b"", 5))]
    feed.leave(b"slow")
    feed.leave(b"fast")
    assert not engine.recorders


def test_a_stream_goes_on_with_the_engine_that_takes_over(tmp_path) -> None:
    """Real processes: the engine's is killed under a listener, and started again."""
    with quire_serve(tmp_path, "--enable-trace", "--restart-engine") as served, listening(served) as lines:
        first = next(lines)
        complete(served, prompt="Once", max_tokens=4)
        assert until_idle(lines)
        os.kill(served.children("engine")[0], signal.SIGKILL)
        kinds = [next(lines)["type"] for _ in range(2)]
        again = next(line for line in lines if line["type"] != "end")
        assert kinds == ["lost", "header"] and again["type"] == "state" and first["v"] == SCHEMA_VERSION
        complete(served, prompt="Once", max_tokens=4)
        assert until_idle(lines)
        served.process.send_signal(signal.SIGTERM)
        assert list(lines) == [], "the stream ends with the server"
        assert served.process.wait(PATIENCE) == 0
