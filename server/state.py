"""What every route shares: the engine client, the settings, and the names under which the model is served."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import PurePath

from fastapi import Request

from quire.server.client import EngineClient
from quire.server.config import ServerConfig
from quire.server.errors import ApiError


@dataclass
class ServerState:
    """One API process. ``draining`` is set when it takes no more requests, before it ends."""

    engine: EngineClient
    config: ServerConfig
    draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

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
        if name is None:
            return self.model_names[0]
        if name not in self.model_names:
            served = ", ".join(self.model_names)
            raise ApiError(
                404, f"The model '{name}' does not exist. Served here: {served}", param="model", code="model_not_found"
            )
        return name
