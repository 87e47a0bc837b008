"""What passes between an API process and the engine's process: msgpack by msgspec, over ZeroMQ.

API processes own all that is text: tokenizer, chat template, stop strings, JSON. The engine's process owns scheduler
and model. So a request crosses as token ids and parameters, and comes back as the scheduler's events. Both are the
engine's own dataclasses, encoded as they are (a quarter of a microsecond per event).

``engine_id`` names one life of the engine: what was meant for an engine that has died is not taken for its successor's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, PoolingParams, SamplingParams
from quire.reference.control.request import Event, SchedulerStats
from quire.reference.engine import ModelFacts


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """API → engine, on each connection: who is there. The requests of an earlier process of this name are aborted."""


class Add(msgspec.Struct, array_like=True, tag="add"):
    """API → engine: one prompt; exactly one kind of parameters is given. Answered by ``Accepted`` or ``Refused``."""

    engine_id: str
    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams | None = None
    beam: BeamSearchParams | None = None
    pooling: PoolingParams | None = None
    priority: int = 0
    cache_salt: str | None = None


class Abort(msgspec.Struct, array_like=True, tag="abort"):
    """API → engine: end a request. Unknown ids are fine. Not answered."""

    request_id: str


class Finish(msgspec.Struct, array_like=True, tag="finish"):
    """API → engine: a stop string has ended this completion. Not answered."""

    request_id: str
    index: int


class Listen(msgspec.Struct, array_like=True, tag="listen"):
    """API → engine: somebody listens to the trace. Answered by ``TraceBegin``, and from then on ``TraceLine``s come.

    ``text``: with tokens in it. Whoever was first decides for all; API processes of one server agree.
    """

    listener: int
    text: bool = False


class Unlisten(msgspec.Struct, array_like=True, tag="unlisten"):
    """API → engine: nobody here listens to the trace any more. Not answered."""


class Call(msgspec.Struct, array_like=True, tag="call"):
    """API → engine: ``reset_prefix_cache``. Answered by ``Reply``."""

    call_id: int
    method: str


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """Engine → API, in answer to ``Hello``: this engine serves, and this is its model."""

    engine_id: str
    model: ModelFacts
    stats: SchedulerStats


class Accepted(msgspec.Struct, array_like=True, tag="accepted"):
    """Engine → API: the request is in the scheduler and will come to an end."""

    request_id: str


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """Engine → API: the request cannot run; the fields of a ``RequestError``."""

    request_id: str
    field: str
    value: Any
    problem: str
    remedy: str

    @classmethod
    def of(cls, request_id: str, error: RequestError) -> Refused:
        return cls(
            request_id, error.field, msgspec.to_builtins(error.value, enc_hook=repr), error.problem, error.remedy
        )

    def error(self) -> RequestError:
        return RequestError(self.field, self.value, self.problem, self.remedy)


class Events(msgspec.Struct, array_like=True, tag="events"):
    """Engine → API: news of this process's requests, in order; now and then with the engine's statistics."""

    events: list[Event]
    stats: SchedulerStats | None = None


class Reply(msgspec.Struct, array_like=True, tag="reply"):
    """Engine → API: a call is done."""

    call_id: int


class TraceBegin(msgspec.Struct, array_like=True, tag="trace_begin"):
    """Engine → API: the first lines of the trace for one listener, as JSON. The lines that follow go on from there."""

    listener: int
    lines: list[bytes]


class TraceLine(msgspec.Struct, array_like=True, tag="trace"):
    """Engine → API: a line of the trace, as JSON, for all listeners. Empty: some were left out, ``missed`` steps."""

    line: bytes
    missed: int = 0


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """Engine → API: all of this process's requests have ended, and why. ``fatal``: the engine itself is going down."""

    message: str
    fatal: bool


ToEngine = Hello | Add | Abort | Finish | Call | Listen | Unlisten
ToApi = Ready | Accepted | Refused | Events | Reply | TraceBegin | TraceLine | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_api = msgspec.msgpack.Decoder(ToApi).decode
