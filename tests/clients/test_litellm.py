"""litellm against a live server, by its provider for any OpenAI-compatible address: sync, streaming, async.

No tools: at 1.106 litellm looks for the package ``mcp`` as soon as a request has some."""

from __future__ import annotations

import litellm
import pytest

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def arguments(server) -> dict:
    return {"model": "openai/pocket", "api_base": f"{server.url}/v1", "api_key": "unused"}


@pytest.fixture
def greedy(arguments) -> dict:
    return {**arguments, "messages": HELLO, "temperature": 0, "max_tokens": 12}


def test_streamed_chat_is_the_whole_chat(greedy):
    whole = litellm.completion(**greedy)
    chunks = list(litellm.completion(**greedy, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content != ""
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0


async def test_async_chat_is_the_sync_chat(greedy):
    whole = await litellm.acompletion(**greedy)
    stream = await litellm.acompletion(**greedy, stream=True)
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == whole.choices[0].message.content == litellm.completion(**greedy).choices[0].message.content


def test_completions(arguments):
    wanted = {**arguments, "model": "text-completion-openai/pocket", "prompt": "Once upon a time", "max_tokens": 8}
    whole = litellm.text_completion(**wanted, temperature=0)
    parts = litellm.text_completion(**wanted, temperature=0, stream=True)
    assert "".join(p.choices[0].text or "" for p in parts) == whole.choices[0].text != ""


def test_an_error_is_litellms_own(greedy):
    with pytest.raises(litellm.BadRequestError, match="Give a number in"):
        litellm.completion(**{**greedy, "temperature": -1})


def test_embeddings(arguments):
    answer = litellm.embedding(**arguments, input=["Once upon a time", "in the West"], encoding_format="float")
    assert [len(row["embedding"]) for row in answer.data] == [256, 256] and answer.usage.prompt_tokens > 0
