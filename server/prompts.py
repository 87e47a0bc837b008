"""From what a client sends to token ids: texts, token ids, conversations.

Long texts are tokenized in a thread, so that one user's novel does not hold up the streams of all others; short ones
are faster done at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from quire.assets import Assets
from quire.reference.control.errors import RequestError
from quire.reference.tokenizer import encode, render_chat
from quire.server.errors import named, place

THREAD_FROM = 8_000  # characters: about a millisecond of tokenizing, many times what handing it over costs


async def tokenize(assets: Assets, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of a text."""
    tokenizer = assets.get_tokenizer()
    if len(text) < THREAD_FROM:
        return encode(tokenizer, text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(encode, tokenizer, text, add_special_tokens=add_special_tokens)


async def completion_prompts(
    assets: Assets, prompt: Any, *, add_special_tokens: bool = True, field: str = "prompt"
) -> list[tuple[str | None, list[int]]]:
    """The prompts of /v1/completions and /v1/embeddings, whichever of the four forms they have: (text, token ids).

    Errors name the ``field`` they came in.
    """
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not prompt:
        raise RequestError(field, prompt, "no prompt", "Give a text, token ids, or a list of these")
    found: list[tuple[str | None, list[int]]] = []
    for number, one in enumerate(prompt):
        if isinstance(one, str):
            with named({"prompt": place(field, number, len(prompt))}):
                found.append((one, await tokenize(assets, one, add_special_tokens=add_special_tokens)))
        else:
            found.append((None, list(one)))
    return found


async def chat_prompt(
    assets: Assets, messages: list[dict[str, Any]], *, add_special_tokens: bool = False, **template_args: Any
) -> tuple[str, list[int]]:
    """A conversation as the text the model was trained on, and its token ids. Special tokens are the template's."""
    tokenizer = assets.get_tokenizer()

    def work() -> tuple[str, list[int]]:
        text = render_chat(tokenizer, messages, **template_args)
        return text, encode(tokenizer, text, add_special_tokens=add_special_tokens)

    size = sum(len(str(m.get("content") or "")) for m in messages)
    return work() if size < THREAD_FROM else await asyncio.to_thread(work)
