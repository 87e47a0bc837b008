"""The line to the server: streams become ``Answer`` objects, failures become sentences.

Times are taken here, where the bytes arrive, so they include HTTP and are what a client of the server would see.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from quire.ui.scenarios import Call, Scenario, play

Body = dict[str, Any]


class ServerError(Exception):
    """Something went wrong at the server or on the way; its text is for the person at the page.

    needs_key   True if the server wants an API key, or another one
    """

    def __init__(self, message: str, *, needs_key: bool = False) -> None:
        super().__init__(message)
        self.needs_key = needs_key


@dataclass
class Token:
    """One token of an answer.

    top      the likeliest ones at its place, as (text, logprob)
    drafted  speculative decoding had guessed it, and the model agreed
    """

    text: str
    logprob: float
    top: list[tuple[str, float]] = field(default_factory=list)
    drafted: bool = False


@dataclass
class Choice:
    """One of the ``n`` answers to a request. ``calls`` are tool calls in OpenAI's form."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Answer:
    """What has come of a request so far.

    began, first, last   ``time.perf_counter`` when it was sent, when its first and its latest token came
    first_tokens         how many tokens came with the first one: several, with speculation or several choices
    usage                the server's own count of tokens, OpenAI's object
    """

    choices: list[Choice] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float | None = None
    first_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return int(self.usage.get("prompt_tokens", 0))

    @property
    def completion_tokens(self) -> int:
        return int(self.usage.get("completion_tokens", 0))

    @property
    def cached_tokens(self) -> int:
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))

    @property
    def accepted(self) -> int:
        """Drafts of speculative decoding that the model agreed with."""
        return int((self.usage.get("completion_tokens_details") or {}).get("accepted_prediction_tokens", 0))

    @property
    def rejected(self) -> int:
        return int((self.usage.get("completion_tokens_details") or {}).get("rejected_prediction_tokens", 0))

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first is None else self.first - self.began

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first ones, over all choices; None where nothing followed them."""
        if self.first is None or self.last is None or self.last <= self.first:
            return None
        return (self.completion_tokens - self.first_tokens) / (self.last - self.first)

    def take(self, event: Body) -> None:
        """Add an event of the stream, or a whole response."""
        now = time.perf_counter()
        self.usage = event.get("usage") or self.usage
        for part in event["choices"]:
            while len(self.choices) <= part["index"]:
                self.choices.append(Choice())
            new = part.get("delta") or part.get("message") or {}
            if read_choice(self.choices[part["index"]], part, new):
                if self.first is None:
                    self.first, self.first_tokens = now, self.completion_tokens
                self.last = now


def read_choice(choice: Choice, part: Body, new: Body) -> bool:
    """Add what an event says about one choice; return whether there were tokens in it."""
    choice.text += new.get("content") or ""
    choice.reasoning += new.get("reasoning_content") or ""
    for i, call in enumerate(new.get("tool_calls") or ()):
        index = call.get("index", i)
        while len(choice.calls) <= index:
            choice.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        known = choice.calls[index]
        known["id"] = call.get("id") or known["id"]
        for name in ("name", "arguments"):
            known["function"][name] += call["function"].get(name) or ""
    listed = (part.get("logprobs") or {}).get("content") or ()
    for entry in listed:
        top = [(other["token"], other["logprob"]) for other in entry["top_logprobs"]]
        choice.tokens.append(Token(entry["token"], entry["logprob"], top, bool(entry.get("drafted"))))
    choice.finish_reason = part.get("finish_reason") or choice.finish_reason
    return bool(listed or new.get("content") or new.get("reasoning_content") or new.get("tool_calls"))


class Client:
    """Talks to the servers that the playground was started with. Keys come with each call and are not kept."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = [url.rstrip("/") for url in urls]
        # No limit on the time between tokens: a long prompt may wait long. Nor on connections: the lab opens many.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=5.0), limits=httpx.Limits(max_connections=None)
        )

    async def alive(self, url: str) -> bool:
        """Whether the server is ready. Costs nothing: probes need no key and leave no line in its log."""
        try:
            async with self._request("GET", url, "/ready", ""):
                return True
        except ServerError:
            return False

    async def models(self, url: str, key: str) -> list[dict[str, Any]]:
        """What is served there: OpenAI's model objects."""
        return list((await self._json("GET", url, "/v1/models", key))["data"])

    async def chat(self, url: str, body: Body, key: str) -> AsyncGenerator[Answer, None]:
        """Send a chat and yield its answer, the same object each time, whenever something is new.

        Closing the iterator closes the connection, and the server drops the request. Raises ServerError; what had come
        until then is in the object that was yielded last.
        """
        answer = Answer()
        if body.get("use_beam_search"):  # the server knows the best beams only at the end
            answer.take(await self._json("POST", url, "/v1/chat/completions", key, body))
            yield answer
            return
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {**body, "stream": True, "stream_options": options}
        async with self._request("POST", url, "/v1/chat/completions", key, body) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise ServerError(f"The server broke off: {event['error']['message']}")
                    answer.take(event)
                    yield answer
            raise ServerError("The server ended the stream in the middle of the answer")

    async def trace(self, url: str, key: str) -> AsyncIterator[bytes]:
        """The bytes of a server's /trace, as they come."""
        async with self._request("GET", url, "/trace", key) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def pool(self, url: str, key: str) -> tuple[int, int]:
        """How many KV blocks the server has, and of how many tokens."""
        async with self._request("GET", url, "/metrics", key) as response:
            info = re.search(r"^quire:cache_config_info\{(.*)\}", (await response.aread()).decode(), re.M)
        labels = dict(re.findall(r'(\w+)="(\d+)"', info[1] if info else ""))
        return int(labels.get("num_blocks", 0)), int(labels.get("block_size", 0))

    async def play(self, url: str, scenario: Scenario, key: str) -> list[tuple[str, str]]:
        """Play a scenario; (question, answer) of each of its requests. An answer may be an error in words."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=None, limits=limits) as http:
                responses = await play(scenario, http)
        except httpx.ConnectError:
            raise ServerError(f"No server answers at {url}. Start it with: quire serve --enable-trace") from None
        except httpx.HTTPError:
            raise ServerError(f"The connection to {url} broke off. Is the server still running?") from None
        return [said(call, url, response) for call, response in zip(scenario.calls, responses)]

    async def _json(self, method: str, url: str, path: str, key: str, body: Body | None = None) -> Body:
        async with self._request(method, url, path, key, body) as response:
            return dict(json.loads(await response.aread()))

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, path: str, key: str, body: Body | None = None
    ) -> AsyncIterator[httpx.Response]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            async with self._http.stream(method, url + path, json=body, headers=headers) as response:
                if response.is_error:
                    raise refusal(url, response.status_code, await response.aread())
                yield response
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise ServerError(f"No server answers at {url}. Start it with: quire serve") from None
        except httpx.HTTPError:
            raise ServerError(f"The connection to {url} broke off. Is the server still running?") from None


def said(call: Call, url: str, response: httpx.Response) -> tuple[str, str]:
    """The last message of a request, and the answers to it, or why there are none."""
    question = call.body["messages"][-1]["content"]
    if response.is_error:
        return question, str(refusal(url, response.status_code, response.content))
    return question, "\n".join(choice["message"]["content"] or "" for choice in response.json()["choices"])


def refusal(url: str, status: int, body: bytes) -> ServerError:
    """What the server said, when it refused."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip()[:200] or "no reason given"
    if status == 401:
        return ServerError(f"{url} wants an API key: {message}", needs_key=True)
    return ServerError(f"{url} answers {status}: {message}")


async def until(stop: asyncio.Event, stream: AsyncGenerator[Answer, None]) -> AsyncIterator[Answer]:
    """The stream until ``stop`` is set, also where it waits for its first token; then it is closed."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        while True:
            following = asyncio.ensure_future(anext(stream))
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                following.cancel()
                await asyncio.wait({following})
                return
            try:
                yield following.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()
        await stream.aclose()
