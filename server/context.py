"""The HTTP request that is being served: its id, and what its line in the log is going to say.

The outermost middleware puts a ``RequestRecord`` into ``current``; every task that the request starts inherits it, so
that a line logged anywhere below carries the request's id without handing it through.
"""

from __future__ import annotations

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from quire.reference.outputs import RequestMetrics


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request.

    id           the client's X-Request-Id, or one made here
    began        when it came in, in seconds of ``time.monotonic``
    path         as it was asked for, without the query: a query may hold anything
    model        the name that it was answered under
    status       of the response; None if the client was gone before there was one
    error        code (or else type) of the error object it was answered with
    prompts      what became of each prompt that it handed to the engine
    """

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.monotonic)
    model: str | None = None
    status: int | None = None
    error: str | None = None
    prompts: list[RequestMetrics] = field(default_factory=list)

    def engine_request_id(self) -> str:
        """An id for a prompt of this request that no other has, also if two clients send the same X-Request-Id."""
        return f"{self.id}-{uuid.uuid4().hex[:12]}"


current: ContextVar[RequestRecord | None] = ContextVar("quire_request", default=None)
