"""What every route shares: the engine client, the settings, and the names under which the model is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from fastapi import Request

from quire.reference.control.errors import ConfigError, RequestError
from quire.reference.control.params import BeamSearchParams, RequestParams, SamplingParams
from quire.reference.structured.validator import StructuredValidator
from quire.reference.tokenizer import bad_words_token_ids, render_chat
from quire.server.client import EngineClient, Generation
from quire.server.config import ServerConfig
from quire.server.context import current
from quire.server.errors import ApiError, named
from quire.server.metrics import Metrics
from quire.server.parsers import Parser
from quire.server.parsers.registry import ToolFormat, reasoning_parser, tool_format
from quire.server.response_store import ResponseStore
from quire.server.tracing import Tracing, tracing_to


@dataclass
class ServerState:
    """One API process.

    draining     it takes no more requests, and ends when those it has are done
    num_running  HTTP requests at work, streams until their end; probes do not count
    """

    engine: EngineClient
    config: ServerConfig
    draining: bool = False
    num_running: int = 0
    metrics: Metrics = field(init=False)
    responses: ResponseStore = field(init=False)
    tracing: Tracing | None = field(init=False)
    _idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.model_names[0])
        self.responses = ResponseStore(self.config.max_stored_responses, self.config.api_server_count)
        self.engine.observe = self.metrics.observe
        self.engine.traces.text = self.config.trace_text
        self.tracing = tracing_to(self.config.otlp_traces_endpoint)

    @staticmethod
    def of(request: Request) -> ServerState:
        state: ServerState = request.app.state.quire
        state.engine.start()  # the first request does it where nobody runs our lifespan: in a mounted application
        return state

    def check_settings(self) -> None:
        """Find out now what the settings come to. Raises ``QuireError``, also if there is no tokenizer."""
        self.engine.assets.get_tokenizer()  # hardly anything could be answered without
        _ = self.chat_template, self.tool_format, self.reasoning
        if self.config.chat_template is not None:
            self._try_chat_template()

    def _try_chat_template(self) -> None:
        """Whether the template that was given is one. What it says of a conversation is for requests to find out."""
        hello = [{"role": "user", "content": "Hello"}]
        try:
            render_chat(self.engine.assets.tokenizer, hello, chat_template=self.chat_template)
        except RequestError as error:
            if error.field == "chat_template":
                raise ConfigError(error.field, self.config.chat_template, error.problem, error.remedy) from None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a request for as long as it is at work."""
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()

    async def idle(self) -> None:
        """Return when no request is at work."""
        while self.num_running:
            self._idle.clear()
            await self._idle.wait()

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may ask for; the first one is what responses say."""
        return self.config.served_model_name or (self.engine.assets.name,)

    def check_model(self, name: str | None) -> str:
        """The name to answer with. Raises a 404 ``ApiError`` for a model that is not served here."""
        name = self.model_names[0] if name is None else name
        if name not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(
                404, f"The model '{name}' does not exist. Served here: {served}", param="model", code="model_not_found"
            )
        record = current.get()
        if record is not None:
            record.model = name
        return name

    async def add(
        self,
        prompt_token_ids: list[int],
        params: RequestParams,
        *,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 0,
        cache_salt: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Generation:
        """``EngineClient.add`` for the HTTP request at hand: traceable by its id, within the server's time limit.

        Grammars are checked first, in a process of their own. Errors speak of fields as the client does: ``names`` has
        the client's names for the engine's.
        """
        record = current.get()
        with named(names or {}):
            if isinstance(params, SamplingParams) and params.structured_outputs is not None:
                await self.grammars.check(params.structured_outputs)
            generation = await self.engine.add(
                prompt_token_ids,
                params,
                request_id=None if record is None else record.engine_request_id(),
                prompt=prompt,
                stream=stream,
                priority=priority,
                cache_salt=cache_salt,
                timeout=self.config.request_timeout,
            )
        self.metrics.admitted(params)
        if record is not None:
            record.prompts.append(generation.metrics)
        return generation

    def with_bad_words(self, params: SamplingParams | BeamSearchParams) -> SamplingParams | BeamSearchParams:
        """The parameters with ``bad_words`` spelled as token ids, which is all that the engine knows."""
        if not isinstance(params, SamplingParams) or not params.bad_words:
            return params
        spelled = bad_words_token_ids(self.engine.assets.get_tokenizer(), params.bad_words)
        return replace(params, bad_words_token_ids=(*params.bad_words_token_ids, *spelled))

    def token_text(self, token_id: int) -> str:
        """What one token alone decodes to, special tokens included."""
        return str(self.engine.assets.get_tokenizer().decode([token_id]))

    @cached_property
    def chat_template(self) -> str:
        """The chat template's source: the one given at the start, else the tokenizer's; empty if there is none."""
        given = self.config.chat_template
        if given is None:
            own = getattr(self.engine.assets.tokenizer, "chat_template", None)
            return own.get("default", "") if isinstance(own, dict) else own or ""
        if "{" in given or "\n" in given:
            return given
        try:
            return Path(given).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                "chat_template", given, f"cannot be read ({error})", "Name a file, or give the template"
            ) from None

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None if nobody knows."""
        return tool_format(self.config.tool_call_parser, self.chat_template)

    @cached_property
    def reasoning(self) -> Callable[[Parser], Parser] | None:
        """What tells reasoning from the answer; None if the model does not reason."""
        return reasoning_parser(self.config.reasoning_parser, self.chat_template)

    @cached_property
    def grammars(self) -> StructuredValidator:
        """What says whether a schema, a regex or a grammar is usable, whatever it may cost to find out."""
        return StructuredValidator(self.engine.assets.get_tokenizer)
