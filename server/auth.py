"""API keys: where they come from, and the middleware without which nothing answers.

The check stands in front of routing, so what it guards is everything that is not named in ``PUBLIC``: the pages of the
documentation, mounted applications and addresses that do not exist as much as the endpoints.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from starlette.routing import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.reference.control.errors import ConfigError
from quire.server.config import ServerConfig
from quire.server.errors import ApiError, respond

PUBLIC = ("/health", "/ready")  # for probes, which carry no key; /metrics joins them by option
UI = "/ui"  # where the playground is; it holds nothing secret, and asks for the key that its requests carry


def load_api_keys(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of ``--api-key`` and of the key file; if neither is given, that of ``QUIRE_API_KEY``.

    Raises ``ConfigError`` rather than to leave a server open that was meant to be closed: for an empty key, for a file
    that cannot be read or holds no key.
    """
    keys = list(config.api_key)
    if config.api_key_file is not None:
        try:
            lines = Path(config.api_key_file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                "api_key_file",
                config.api_key_file,
                f"cannot be read: {error}",
                "Name a text file with one key per line",
            ) from None
        from_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not from_file:
            raise ConfigError("api_key_file", config.api_key_file, "holds no key", "Write one key per line into it")
        keys += from_file
    if not keys and "QUIRE_API_KEY" in environ:
        keys = [environ["QUIRE_API_KEY"]]
    for key in keys:
        if not key or key != key.strip() or not key.isprintable():
            raise ConfigError("api_key", "***", "empty, or has spaces around it or characters that no header can hold",
                              "Give a key of printable characters")  # fmt: skip
    return tuple(keys)


class Authentication:
    """Turns away whoever brings none of ``keys`` as ``Authorization: Bearer KEY``; without keys everybody passes."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], public_metrics: bool, ui: bool = False) -> None:
        self.app = app
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._public = {*PUBLIC, "/metrics"} if public_metrics else set(PUBLIC)
        self._ui = ui

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._hashes or self._is_public(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await respond(refusal(scope))(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        # The path as the router is going to see it: below the place where the application is mounted.
        if scope["type"] != "http":
            return False
        return (self._ui and is_ui(scope)) or (
            scope["method"] in ("GET", "HEAD") and get_route_path(scope) in self._public
        )

    def _has_key(self, scope: Scope) -> bool:
        """Takes the same time whatever the key and however many there are: hashes, compared with all of them."""
        scheme, _, key = authorization(scope).partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == b"bearer" and any(matches)


def is_ui(scope: Scope) -> bool:
    """Whether a request is for the playground."""
    path = get_route_path(scope)
    return path == UI or path.startswith(UI + "/")


def authorization(scope: Scope) -> bytes:
    """The Authorization header; of several, none counts."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return values[0] if len(values) == 1 else b""


def refusal(scope: Scope) -> ApiError:
    if authorization(scope):
        message = "Incorrect API key provided. Send one that this server knows as 'Authorization: Bearer KEY'"
    else:
        message = "You didn't provide an API key. Send it in the header 'Authorization: Bearer KEY'"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
