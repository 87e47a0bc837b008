"""Log-probabilities of chat completions: each token has its own bytes, also where its text is half a character."""

from __future__ import annotations

import openai
import pytest

PARTY = "🎉ö"


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_of_tokens_are_those_of_the_text(server, stream: bool) -> None:
    ask = {
        "model": "pocket",
        "messages": [{"role": "user", "content": "Hello"}],
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"structured_outputs": {"choice": [PARTY]}},
    }
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        if stream:
            choices = [c.choices[0] for c in client.chat.completions.create(**ask, stream=True)]
        else:
            choices = client.chat.completions.create(**ask).choices
    tokens = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    parts = [bytes(entry.bytes) for entry in tokens]
    end = server.state.engine.assets.get_tokenizer().eos_token.encode()
    assert b"".join(parts).removesuffix(end) == PARTY.encode()
    assert any(entry.token == "\ufffd" and len(entry.bytes) == 1 for entry in tokens)
    assert all(likely.bytes for entry in tokens for likely in entry.top_logprobs)
