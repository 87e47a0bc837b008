"""The scenarios: names that can be used, moments that exist, requests that a server takes, and recorded traces."""

from __future__ import annotations

import httpx
import pytest

from quire.reference.trace import read_trace
from quire.ui import static, trace
from quire.ui.pairs import PAIRS
from quire.ui.record import flags
from quire.ui.scenarios import MOMENTS, SCENARIOS, play, scenario


@pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one.name)
def test_a_scenario_is_a_story_about_requests(one) -> None:
    assert scenario(one.name) is one and one.name.isidentifier()
    assert one.calls and all(call.path.startswith("/v1/") for call in one.calls)
    assert one.narration and {moment for moment, _ in one.narration} <= set(MOMENTS)
    assert one.contrast is None or one.contrast[0].isidentifier()


def test_another_name_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(KeyError, match="there are prefix"):
        scenario("nonsense")


@pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one.name)
async def test_a_server_answers_its_requests(one, server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        responses = await play(one, client)
    assert [response.status_code for response in responses] == [200] * len(one.calls), responses[0].text


@pytest.mark.parametrize("one", (*SCENARIOS, *PAIRS), ids=lambda one: one.name)
def test_its_recorded_trace_is_small_and_complete(one) -> None:
    file = static().with_name("traces") / f"{one.name}.jsonl"
    assert file.stat().st_size < 128 << 10 and trace(one.name) == file.read_text("utf-8")
    read = read_trace(file)
    assert len(read.requests) == len(one.calls) and read.header["redacted"]
    assert read.header["num_blocks"] == one.engine["num_blocks"]
    assert [step["plan"]["step"] for step in read.steps] == list(range(len(read.steps)))
    assert read.steps[-1]["stats"]["num_running"] == 0


def test_all_traces_have_a_scenario_of_their_own() -> None:
    names = [one.name for one in (*SCENARIOS, *PAIRS)]
    assert sorted(names) == sorted(file.stem for file in static().with_name("traces").glob("*.jsonl"))


def test_both_data_planes_were_told_the_same() -> None:
    """docs/concepts/two-planes.md shows these two side by side. Of the tokens, tests/fast says it."""

    def told(name: str) -> list[tuple]:
        steps = read_trace(static().with_name("traces") / f"{name}.jsonl").steps
        return [(step["plan"], step["tables"], step["events"]) for step in steps]

    assert told("parallel") == told("parallel_reference")


def test_there_is_no_trace_of_another_name() -> None:
    with pytest.raises(KeyError, match="there are ahead, ahead_off"):
        trace("nonsense")


def test_engine_arguments_become_flags() -> None:
    arguments = {"num_blocks": 9, "enable_prefix_caching": False, "speculative_config": {"model": "x"}, "trace": None}
    assert flags(arguments) == [
        "--num-blocks", "9", "--no-enable-prefix-caching", "--speculative-config", '{"model": "x"}',
    ]  # fmt: skip
