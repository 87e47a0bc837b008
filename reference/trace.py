"""A record of every step: what was planned, what came of it, which blocks each row held, and how long each part took.

``TraceLines`` makes the lines of a trace, as dicts. A ``Recorder`` writes them to a file as the engine runs; the
server streams them to whoever watches. Where nobody records, the engine does not even build the arguments.
``read_trace`` gives the steps of a file back to tools, and ``python -m quire.reference.trace in.jsonl out.json`` turns
it into one for https://ui.perfetto.dev (trace_chrome.py).

The lines, each an object with a ``type``::

    header    v (schema version), id, created, block_size, num_blocks, redacted, and whatever the engine's owner adds
    state     t, step, requests, sequences, tables, cache, stats: all there is, for who has not seen it come about
    request   t, request_id, prompt_len, params, seed (as text: 64 bits), priority, and token_ids unless redacted
    end       t, request_id, index, reason: a sequence that was ended from outside (an abort, a stop string, a grammar)
    step      t, phases {name: [begin, duration]}, plan, owners {seq_id: request_id}, result, events,
              tables, preempted, after, cache, stats

All times are seconds since the trace was begun. ``tables`` holds, after the plan's changes and before its forward pass,
the block tables that the step changed: row -> block ids, or null for a row that ended or was ``preempted``; ``after``
holds in the same form what the step's results changed. ``cache`` are the blocks that the prefix cache has learned
(their name and that of the block before them) or forgotten (null) since the line before; names are hashes under a key
of this trace, so that they say which prefixes are equal and nothing else. ``state`` stands where a trace begins in the
middle. What is at its default may be left out: ``n_draft``, ``new_blocks`` and what else has a default in ``SeqPlan``,
an event's ``finish_reason`` and ``num_cached_tokens``, and figures of ``stats``. Lines are written whole, one by one,
so that a file stays readable when the process dies.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from quire.reference.control.errors import ConfigError
from quire.reference.control.inspection import CacheEntry, Landed, Planned, Snapshot
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Event, Request, SchedulerStats

SCHEMA_VERSION = 2

Line = dict[str, Any]

# A line may leave these out; ``read_trace`` puts them in.
SEQ_DEFAULTS: Line = {"n_draft": 0, "new_blocks": [], "write": True, "pools": False, "propose": 0}
EVENT_DEFAULTS: Line = {"finish_reason": None, "num_cached_tokens": 0}
STATS_DEFAULTS: Line = asdict(SchedulerStats())


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished step, as the engine tells it. ``planned`` is None for a step from before anybody recorded."""

    plan: StepPlan
    result: StepResult
    events: list[Event]
    phases: dict[str, tuple[float, float]]
    stats: SchedulerStats
    planned: Planned | None
    landed: Landed


class TraceLines:
    """Makes the lines of one trace. What is in them is for JSON: dicts, lists, numbers, texts, and dataclasses of such.

    redact   leave out token ids, stop strings and whatever else tells what was said; counts stay
    """

    def __init__(
        self, *, block_size: int, num_blocks: int, redact: bool = False, about: dict[str, Any] | None = None
    ) -> None:
        self._redact = redact
        self._origin = time.perf_counter()
        self._key = os.urandom(16)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        about = {
            "id": self._key[:4].hex(),
            "block_size": block_size,
            "num_blocks": num_blocks,
            "redacted": redact,
            "created": created,
        } | (about or {})
        self.header: Line = {"type": "header", "v": SCHEMA_VERSION} | about

    def state(self, snapshot: Snapshot) -> Line:
        """Everything as it stands."""
        return {
            "type": "state",
            "t": self._now(),
            "step": snapshot.step,
            "requests": [self._request(request) for request in snapshot.requests],
            "sequences": snapshot.sequences,
            "tables": snapshot.tables,
            "cache": self._cache(snapshot.cache),
            "stats": snapshot.stats,
        }

    def request(self, request: Request) -> Line:
        """A request was admitted."""
        return {"type": "request", "t": self._now()} | self._request(request)

    def end(self, request_id: str, index: int, reason: str) -> Line:
        """A sequence was ended by somebody other than the scheduler."""
        return {"type": "end", "t": self._now(), "request_id": request_id, "index": index, "reason": reason}

    def step(self, step: StepRecord) -> Line:
        """A step is done. They come in the order of the plans."""
        times = {name: [begin - self._origin, end - begin] for name, (begin, end) in step.phases.items()}
        planned = step.planned or Planned({}, {}, [])
        return {
            "type": "step",
            "t": min((begin for begin, _ in times.values()), default=0.0),
            "phases": times,
            "plan": _plan(step.plan, self._redact),
            "owners": planned.owners,
            "result": _result(step.result, self._redact),
            "events": [_event(e, self._redact) for e in step.events],
            "tables": planned.tables,
            "preempted": planned.preempted,
            "after": step.landed.tables,
            "cache": self._cache(step.landed.cache),
            "stats": step.stats,
        }

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    def _request(self, request: Request) -> Line:
        line = {
            "request_id": request.request_id,
            "prompt_len": len(request.prompt_token_ids),
            "params": _params(request.params, self._redact),
            "seed": str(request.seed),
            "priority": request.priority,
        }
        return line if self._redact else line | {"token_ids": request.prompt_token_ids}

    def _cache(self, entries: Mapping[int, CacheEntry | None]) -> dict[int, list[str] | None]:
        return {block: entry and [self._name(name) for name in entry] for block, entry in entries.items()}

    def _name(self, name: bytes) -> str:
        return blake2b(name, key=self._key, digest_size=6).hexdigest()


class Recorder:
    """Writes a trace to ``folder``: ``steps.jsonl`` as it goes, ``steps.trace.json`` (Chrome format) on ``close``.

    Raises ConfigError if the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, lines: TraceLines) -> None:
        self.path = Path(folder) / "steps.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as the engine does
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError("trace", str(folder), f"cannot be written ({reason})", "Name a folder you own") from None
        self._lines = lines
        self._write(lines.header)

    def request(self, request: Request) -> None:
        self._write(self._lines.request(request))

    def end(self, request_id: str, index: int, reason: str) -> None:
        self._write(self._lines.end(request_id, index, reason))

    def step(self, step: StepRecord) -> None:
        self._write(self._lines.step(step))

    def close(self) -> None:
        """Close the file and write the Chrome trace beside it. Calling it again does nothing."""
        if not self._file.closed:
            self._file.close()
            from quire.reference.trace_chrome import to_chrome

            to_chrome(self.path, self.path.with_name("steps.trace.json"))

    def _write(self, line: Line) -> None:
        self._file.write(json.dumps(line, separators=(",", ":"), default=_fields) + "\n")


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass as a dict, for json; what it holds comes here by itself."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} cannot be written as JSON")
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _params(params: Any, redact: bool) -> dict[str, Any]:
    values = asdict(params)
    if redact:
        for name in ("stop", "bad_words", "bad_words_token_ids", "logit_bias", "allowed_token_ids", "stop_token_ids"):
            if name in values:
                values[name] = len(values[name] or ())
        if isinstance(params, SamplingParams) and params.structured_outputs is not None:
            values["structured_outputs"] = params.structured_outputs.kind
    elif isinstance(params, SamplingParams) and params.logit_bias:
        values["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
    return values


def _tokens(token_ids: Sequence[int], redact: bool) -> list[int] | int:
    return len(token_ids) if redact else list(token_ids)


def _plan(plan: StepPlan, redact: bool) -> dict[str, Any]:
    """The plan as it is; sampling parameters are left to the request's own line."""
    return {
        "step": plan.step,
        "ends": plan.ends,
        "starts": [
            {"row": s.row, "seq_id": s.seq_id, "prompt_len": s.prompt_len, "stream": s.stream}
            | {"token_ids": _tokens(s.token_ids, redact)}
            for s in plan.starts
        ],
        "forks": [
            {"row": f.row, "parent_row": f.parent_row, "seq_id": f.seq_id, "length": f.length, "stream": f.stream}
            | ({} if redact else {"token": f.token})
            for f in plan.forks
        ],
        "swap_out": plan.swap_out,
        "copies": plan.copies,
        "swap_in": plan.swap_in,
        "seqs": plan.seqs,
    }


def _result(result: StepResult, redact: bool) -> dict[str, Any]:
    tokens = [_tokens(t, redact) for t in result.tokens]
    drafts = {i: _tokens(draft, redact) for i, draft in result.drafts.items()}
    return {"step": result.step, "tokens": tokens, "accepted": result.accepted, "drafts": drafts}


def _event(event: Event, redact: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"request_id": event.request_id, "index": event.index, "n": len(event.token_ids)}
    if not redact:
        line["token_ids"] = event.token_ids
    if event.embedding is not None:
        line["embedding_size"] = len(event.embedding) // 4
    if event.finish_reason is not None:
        line["finish_reason"] = event.finish_reason
    if event.num_cached_tokens:
        line["num_cached_tokens"] = event.num_cached_tokens
    return line


@dataclass(slots=True)
class Trace:
    """A trace file in memory: its header and its lines by type, the steps' tables completed.

    sequences   seq_id -> (request id, which of the request's completions), of all that were ever there
    """

    header: Line
    sequences: dict[int, tuple[str, int]] = field(default_factory=dict)
    requests: list[Line] = field(default_factory=list)
    ends: list[Line] = field(default_factory=list)
    steps: list[Line] = field(default_factory=list)


def read_lines(path: str | Path) -> Iterator[Line]:
    """The lines of a trace file. A last line that was cut off when its writer died is left out."""
    with open(path, encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)


def read_trace(path: str | Path) -> Trace:
    """Read a trace file; every step's ``tables`` becomes the block tables of all rows live in it, by row number."""
    lines = read_lines(path)
    header = next(lines, None)
    if header is None or header.get("type") != "header":
        raise ValueError(f"{path} is no trace: its first line is no header")
    if header["v"] != SCHEMA_VERSION:
        raise ValueError(f"{path} has trace schema version {header['v']}; this quire reads {SCHEMA_VERSION}")
    trace = Trace(header)
    tables: dict[int, list[int]] = {}
    for line in lines:
        if line["type"] == "request":
            trace.requests.append(line)
        elif line["type"] == "end":
            trace.ends.append(line)
        elif line["type"] == "state":
            trace.requests += [request | {"t": line["t"]} for request in line["requests"]]
            trace.sequences |= {s["seq_id"]: (s["request_id"], s["stream"]) for s in line["sequences"]}
            tables = {int(row): blocks for row, blocks in line["tables"].items()}
        elif line["type"] == "step":
            line["plan"]["seqs"] = [SEQ_DEFAULTS | seq for seq in line["plan"]["seqs"]]
            line["events"] = [EVENT_DEFAULTS | event for event in line["events"]]
            line["stats"] = STATS_DEFAULTS | line["stats"]
            _change(tables, line["tables"])
            changed, line["tables"] = line["after"], dict(tables)
            _change(tables, changed)
            for new in (*line["plan"]["starts"], *line["plan"]["forks"]):
                owner = line["owners"].get(str(new["seq_id"]))
                if owner is not None:
                    trace.sequences[new["seq_id"]] = owner, new["stream"]
            trace.steps.append(line)
    return trace


def _change(tables: dict[int, list[int]], changed: dict[str, list[int] | None]) -> None:
    for row, blocks in changed.items():
        if blocks is None:
            tables.pop(int(row), None)
        else:
            tables[int(row)] = blocks


def main(argv: list[str] | None = None) -> int:
    """``python -m quire.reference.trace IN.jsonl OUT.json``"""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        print("usage: python -m quire.reference.trace IN.jsonl OUT.json", file=sys.stderr)
        return 2
    from quire.reference.trace_chrome import to_chrome

    try:
        to_chrome(arguments[0], arguments[1])
    except (OSError, ValueError) as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
