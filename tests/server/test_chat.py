"""/v1/chat/completions: what a stream's chunks carry, and who is disturbed when its reader goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import chain

import pytest

from tests.reference.ghost import ghost_engine
from tests.server.conftest import LiveServer, eventually, serve

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def chunks(live: LiveServer, **body) -> Iterator[dict]:
    request = {"messages": HELLO, "stream": True, **body}
    with live.http() as client, client.stream("POST", "/v1/chat/completions", json=request) as response:
        for line in response.iter_lines():
            if line and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("further", [{}, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}])
def test_no_token_id_is_lost_where_there_is_nothing_to_show_yet(server: LiveServer, further: dict) -> None:
    """Half a character and the beginning of a call are held back; their tokens are not."""
    if not further:
        further = {"structured_outputs": {"choice": ["🎉ö"]}}
    body = {"messages": HELLO, "return_token_ids": True, "temperature": 0, "max_tokens": 60, **further}
    with server.http() as client:
        whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    pieces = [chunk["choices"][0] for chunk in chunks(server, **body)]
    assert [*chain.from_iterable(piece.get("token_ids", []) for piece in pieces)] == whole["token_ids"]


def test_where_the_reader_has_gone_the_blocks_are_free_after_the_step_that_runs() -> None:
    with serve(engine=ghost_engine(max_model_len=256, num_blocks=129)) as live:
        steps, allowed, step = [], threading.Semaphore(1), live.engine.step

        def one_step() -> list:
            if not allowed.acquire(blocking=len(steps) < 2):
                return []  # there is no third step; the loop goes on, and hears of the abort
            steps.append(len(steps))
            return step()

        live.engine.step = one_step
        body = {"messages": HELLO, "stream": True, "max_tokens": 200, "ignore_eos": True}
        try:
            with live.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
                next(line for line in response.iter_lines() if line and "role" not in line)  # a token's
            eventually(lambda: not live.state.num_running)  # the server has noticed
            allowed.release()
            eventually(lambda: not live.engine.has_unfinished())
            assert live.engine.stats().blocks_used == 0
        finally:
            allowed.release(1000)


def test_usage_comes_at_the_end_of_a_stream_or_all_along(server: LiveServer) -> None:
    body = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    assert all("usage" not in chunk for chunk in chunks(server, **body))
    *others, last = chunks(server, **body, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in others) and last["usage"]["completion_tokens"] == 4
    along = chunks(server, **body, stream_options={"continuous_usage_stats": True})
    counted = [chunk["usage"]["completion_tokens"] for chunk in along if "usage" in chunk]
    assert counted == sorted(counted) and counted[-1] == 4
