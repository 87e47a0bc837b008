"""Responses that clients may come back to, in memory: for ``previous_response_id`` and GET /v1/responses/{id}.

Nothing is written anywhere: a restart forgets them, and so does time, as the oldest make room for new ones. Each API
process has its own; with ``--api-server-count`` above 1 a client may meet another process that knows nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec

from quire.server.errors import ApiError

MAX_BYTES = 256 << 20  # as JSON, of all stored responses; a conversation counts again with each of its responses


@dataclass(frozen=True)
class StoredResponse:
    """A response, and the items that it was made from: all of the conversation before it, but no instructions."""

    response: dict[str, Any]
    items: list[dict[str, Any]]

    def conversation(self) -> list[dict[str, Any]]:
        """What the next response goes on from."""
        return [*self.items, *self.response["output"]]


class ResponseStore:
    """The latest ``limit`` responses, as long as they take no more than ``MAX_BYTES``."""

    def __init__(self, limit: int, num_processes: int = 1) -> None:
        self.limit = limit
        self.num_processes = num_processes
        self.num_bytes = 0
        self._stored: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, stored: StoredResponse) -> None:
        """Keep a response, and forget the oldest where there is no room."""
        size = len(msgspec.json.encode(stored.response)) + len(msgspec.json.encode(stored.items))
        self._stored[stored.response["id"]] = stored, size
        self.num_bytes += size
        while len(self._stored) > self.limit or self.num_bytes > MAX_BYTES:
            self.num_bytes -= self._stored.popitem(last=False)[1][1]

    def get(self, response_id: str, *, param: str) -> StoredResponse:
        """Raises a 404 ``ApiError`` that blames ``param`` where no such response is stored (any more)."""
        found = self._stored.get(response_id)
        if found is None:
            raise self._unknown(response_id, param)
        return found[0]

    def delete(self, response_id: str, *, param: str) -> None:
        """Forget a response. Those that went on from it keep their conversation."""
        found = self._stored.pop(response_id, None)
        if found is None:
            raise self._unknown(response_id, param)
        self.num_bytes -= found[1]

    def _unknown(self, response_id: str, param: str) -> ApiError:
        message = (
            f"Response with id '{response_id}' not found. This server keeps the latest {self.limit} responses in "
            "memory until it ends (--max-stored-responses)"
        )
        if self.num_processes > 1:
            message += (
                f", in each of its {self.num_processes} API processes for itself, and requests may reach any of them "
                "(--api-server-count)"
            )
        message += ". Give the whole conversation as input"
        code = "previous_response_not_found" if param == "previous_response_id" else "response_not_found"
        return ApiError(404, message, param=param, code=code)
