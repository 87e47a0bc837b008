"""What every route shares: the engine client, the settings, and the names under which the model is served."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from fastapi import Request

from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.tokenizer import bad_words_token_ids
from quire.server.client import EngineClient, Generation
from quire.server.config import ServerConfig
from quire.server.context import current
from quire.server.errors import ApiError
from quire.server.metrics import Metrics

Params = SamplingParams | BeamSearchParams


@dataclass
class ServerState:
    """One API process. ``draining`` is set when it takes no more requests, before it ends."""

    engine: EngineClient
    config: ServerConfig
    draining: bool = False
    metrics: Metrics = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine, self.model_names[0])
        self.engine.observe = self.metrics.observe

    @staticmethod
    def of(request: Request) -> ServerState:
        state: ServerState = request.app.state.quire
        state.engine.start()  # the first request does it where nobody runs our lifespan: in a mounted application
        return state

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may ask for; the first one is what responses say."""
        return self.config.served_model_name or (PurePath(self.engine.assets.path).name,)

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
        params: Params,
        *,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Generation:
        """``EngineClient.add`` for the HTTP request at hand: traceable by its id, within the server's time limit."""
        record = current.get()
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

    def with_bad_words(self, params: Params) -> Params:
        """The parameters with ``bad_words`` spelled as token ids, which is all that the engine knows."""
        if not isinstance(params, SamplingParams) or not params.bad_words:
            return params
        spelled = bad_words_token_ids(self.engine.assets.get_tokenizer(), params.bad_words)
        return replace(params, bad_words_token_ids=(*params.bad_words_token_ids, *spelled))

    def token_text(self, token_id: int) -> str:
        """What one token alone decodes to, special tokens included."""
        return str(self.engine.assets.get_tokenizer().decode([token_id]))
