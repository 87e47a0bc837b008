"""The playground's parts without a browser: what becomes of settings, what is shared, what is said when it fails."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
import sys

import pytest

pytest.importorskip("gradio")

from hypothesis import given
from hypothesis import strategies as st

from quire.cli.ui import meanings
from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig
from quire.server.protocol.sampling import SamplingFields
from quire.ui.client import Answer, Client, ServerError, Token
from quire.ui.lab import fitted
from quire.ui.parameters import ENGINE, FIRST, MORE, fields
from quire.ui.scenarios import scenario
from quire.ui.share import OPENAI, as_curl, as_markdown, as_python
from quire.ui.shared import seconds, split_target, target
from quire.ui.tokens import percent, shown, tokens_html

CONTROLS = (*FIRST, *MORE, *ENGINE)
ELSEWHERE = {  # fields of a request that no control of its own is for, and why
    "user": "accepted without a meaning",
    "prompt_logprobs": "of the prompt, which the page does not take apart",
    "use_beam_search": "no stream; the lab has it",
    "length_penalty": "of beam search",
    "structured_outputs": "Form of the answer",
    "guided_json": "older name",
    "guided_regex": "older name",
    "guided_choice": "older name",
    "guided_grammar": "older name",
    "return_token_ids": "logprobs tell the tokens",
}


def test_every_field_of_sampling_is_on_the_page() -> None:
    """With the meaning that docs/parameters.md has, or one of its own."""
    names = {control.name for control in CONTROLS}
    assert names | set(ELSEWHERE) == {*SamplingFields.model_fields, "max_tokens"}
    assert all(control.meaning or meanings()[control.name] for control in CONTROLS)


def test_what_is_empty_is_not_sent() -> None:
    untouched = [control.default if control.kind in ("slider", "check") else "" for control in CONTROLS]
    assert fields(CONTROLS, untouched) == {"temperature": 0.7, "top_p": 1, "max_tokens": 256}


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_curl_says_what_is_sent(text: str) -> None:
    """Whatever is in a message, the shell hands it on as it is."""
    body = {"model": "pocket", "messages": [{"role": "user", "content": text}], "top_k": 3}
    words = shlex.split(as_curl("http://127.0.0.1:8000", body, keyed=True).replace("\\\n", ""))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert "Authorization: Bearer $QUIRE_API_KEY" in words
    assert json.loads(words[words.index("-d") + 1]) == body


@given(text=st.text(min_size=1))
def test_python_says_what_is_sent(text: str) -> None:
    """It runs, and calls the SDK with that request."""
    body = {"model": "pocket", "messages": [{"role": "user", "content": text}], "top_k": 3, "seed": 1}
    source = as_python("http://127.0.0.1:8000", body, keyed=False)
    call = source[source.index("create(") + len("create") : source.index("print(")]
    given = eval(f"dict{call}")
    assert given.pop("extra_body") == {"top_k": 3}
    assert given == {name: value for name, value in body.items() if name in OPENAI}


def test_markdown_cannot_be_broken_out_of() -> None:
    text = as_markdown([{"role": "user", "content": "```\n# not a heading"}], "pocket")
    assert "````text\n```\n# not a heading\n````" in text


def test_tokens_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>\"'"
    html = tokens_html([Token(evil, -0.1, [(evil, -0.1), ("&amp;", -3.0)])])
    assert "<img" not in html and "&amp;amp;" in html and evil not in html


@pytest.mark.parametrize(
    ("probability", "text"),
    [(1, "100%"), (0.9996, "100%"), (0.995, "99.5%"), (0.5, "50%"), (0.04, "4.0%"), (0, "<0.1%")],
)
def test_probabilities_as_people_write_them(probability: float, text: str) -> None:
    assert percent(probability) == text


def test_what_cannot_be_seen_is_marked() -> None:
    assert shown(" a\n\t") == "␣a⏎⇥" and shown("") == "∅"
    assert [seconds(value) for value in (None, 0.0412, 1.234)] == ["–", "41.2 ms", "1.23 s"]


def test_only_the_given_servers_are_spoken_to() -> None:
    """A page may send anything; another address is replaced by the first server."""
    client = Client(["http://127.0.0.1:8000/", "http://127.0.0.1:8001"])
    assert split_target(target("http://127.0.0.1:8001", "my model"), client) == ("http://127.0.0.1:8001", "my model")
    assert split_target("http://169.254.0.1 pocket", client) == ("http://127.0.0.1:8000", None)
    assert split_target(None, client) == ("http://127.0.0.1:8000", None)


def test_rates_leave_out_the_first_tokens() -> None:
    """Time per token begins where the first ones have come."""
    answer = Answer(usage={"completion_tokens": 21}, began=1.0, first=2.0, last=4.0, first_tokens=1)
    assert answer.ttft == 1.0 and answer.rate == 10.0


def test_memory_pressure_fits_the_pool() -> None:
    """Its stories ask for a third more than there is; where that is too much, it says so."""
    one = scenario("pressure")
    longer, remark = fitted(one, 144, 16)
    asked = sum(call.body["max_tokens"] for call in longer.calls)
    assert 1.25 < asked / (144 * 16) < 1.35 and "144" in remark
    same, remark = fitted(one, 16_000, 16)
    assert same is one and "too many" in remark


async def test_a_server_that_is_not_there_is_named() -> None:
    client = Client(["http://127.0.0.1:9"])
    with pytest.raises(ServerError, match=r"No server answers at http://127\.0\.0\.1:9\. Start it with"):
        await client.models("http://127.0.0.1:9", "")
    with pytest.raises(ServerError, match="No server answers"):
        await client.play("http://127.0.0.1:9", scenario("prefix"), "")


async def test_a_stream_can_be_stopped_before_its_first_token() -> None:
    from quire.ui.client import until

    closed = []

    async def silent():
        try:
            await asyncio.Event().wait()
            yield Answer()
        finally:
            closed.append(True)

    stop = asyncio.Event()
    asyncio.get_running_loop().call_soon(stop.set)
    assert [answer async for answer in until(stop, silent())] == [] and closed == [True]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="api_server_count"):
        ServerConfig(ui=True, api_server_count=2)
    command = [sys.executable, "-m", "quire", "ui", "--url", "localhost:8000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "url='localhost:8000': no address of a server" in done.stderr
