"""A record of every step: what was planned, what came of it, which blocks each row held, and how long each part took.

One ``Recorder`` writes JSON Lines as the engine runs; where none is set the engine does not even build the arguments.
``read_trace`` gives the steps back to tools, ``to_chrome`` turns them into a file for https://ui.perfetto.dev (or
chrome://tracing), and so does the command line: ``python -m quire.reference.trace in.jsonl out.json``.

The lines of a file, each an object with a ``type``::

    header    v (schema version), created, block_size, num_blocks, redacted, and whatever the engine's owner adds
    request   t, request_id, prompt_len, params, seed, and token_ids unless redacted
    end       t, request_id, index, reason: a sequence that was ended from outside (an abort, a stop string, a grammar)
    step      t, phases {name: [begin, duration]}, plan, owners {seq_id: request_id}, result, events, tables, stats

All times are seconds since the recorder was made. ``tables`` holds, after the plan's changes and before its forward
pass, the block tables that the step changed: row -> block ids, or null for a row that ended; ``read_trace`` puts the
full ones together. Lines are written whole, one by one, so a file stays readable when the process dies.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quire.reference.control.errors import ConfigError
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Event, Request, SchedulerStats

SCHEMA_VERSION = 1


class BlockTables:
    """The block tables of all live rows, followed plan by plan: what a runner does with a plan, without the tensors."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.rows: dict[int, list[int]] = {}

    def apply(self, plan: StepPlan) -> dict[int, list[int] | None]:
        """Take over the plan's changes; return the tables it changed, None for a row that ended."""
        changed: dict[int, list[int] | None] = {}
        for row in plan.ends:
            self.rows.pop(row, None)
            changed[row] = None
        for start in plan.starts:
            self.rows[start.row] = []
            changed[start.row] = self.rows[start.row]
        for fork in plan.forks:
            if fork.row != fork.parent_row:
                blocks = -(-fork.length // self.block_size)
                self.rows[fork.row] = self.rows[fork.parent_row][:blocks]
                changed[fork.row] = self.rows[fork.row]
        for seq in plan.seqs:
            if seq.new_blocks:  # what the row had behind ``start`` was reserved for drafts, and given back
                self.rows[seq.row][-(-seq.start // self.block_size) :] = seq.new_blocks
                changed[seq.row] = self.rows[seq.row]
        for _, dst, row, index in plan.copies:
            self.rows[row][index] = dst
            changed[row] = self.rows[row]
        return changed


class Recorder:
    """Writes a trace to ``folder``: ``steps.jsonl`` as it goes, ``steps.trace.json`` (Chrome format) on ``close``.

    redact   leave out token ids, stop strings and whatever else tells what was said; counts stay

    Raises ConfigError if the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        block_size: int,
        num_blocks: int,
        redact: bool = False,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(folder) / "steps.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as the engine does
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError("trace", str(folder), f"cannot be written ({reason})", "Name a folder you own") from None
        self._redact = redact
        self._origin = time.perf_counter()
        self._tables = BlockTables(block_size)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        header = {"block_size": block_size, "num_blocks": num_blocks, "redacted": redact, "created": created}
        self._write({"type": "header", "v": SCHEMA_VERSION} | header | (about or {}))

    def request(self, request: Request) -> None:
        """Record that a request was admitted."""
        line = {
            "type": "request",
            "t": time.perf_counter() - self._origin,
            "request_id": request.request_id,
            "prompt_len": len(request.prompt_token_ids),
            "params": _params(request.params, self._redact),
            "seed": request.seed,
            "priority": request.priority,
        }
        self._write(line if self._redact else line | {"token_ids": request.prompt_token_ids})

    def end(self, request_id: str, index: int, reason: str) -> None:
        """Record that a sequence was ended by somebody other than the scheduler."""
        t = time.perf_counter() - self._origin
        self._write({"type": "end", "t": t, "request_id": request_id, "index": index, "reason": reason})

    def step(
        self,
        plan: StepPlan,
        result: StepResult,
        events: list[Event],
        phases: dict[str, tuple[float, float]],
        stats: SchedulerStats,
        owners: dict[int, str],
    ) -> None:
        """Record a finished step, in the order of the plans. ``owners``: seq_id -> request id of new sequences."""
        changed = self._tables.apply(plan)
        times = {name: [begin - self._origin, end - begin] for name, (begin, end) in phases.items()}
        self._write(
            {
                "type": "step",
                "t": min((begin for begin, _ in times.values()), default=0.0),
                "phases": times,
                "plan": _plan(plan, self._redact),
                "owners": owners,
                "result": _result(result, self._redact),
                "events": [_event(e, self._redact) for e in events],
                "tables": changed,
                "stats": asdict(stats),
            }
        )

    def close(self) -> None:
        """Close the file and write the Chrome trace beside it. Calling it again does nothing."""
        if not self._file.closed:
            self._file.close()
            to_chrome(self.path, self.path.with_name("steps.trace.json"))

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


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


def _tokens(token_ids: list[int], redact: bool) -> list[int] | int:
    return len(token_ids) if redact else token_ids


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
        "seqs": [asdict(s) for s in plan.seqs],
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
    return line | {"finish_reason": event.finish_reason, "num_cached_tokens": event.num_cached_tokens}


@dataclass(slots=True)
class Trace:
    """A trace file in memory: its header and its lines by type, the steps' tables completed."""

    header: dict[str, Any]
    requests: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
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
        elif line["type"] == "step":
            for row, blocks in line["tables"].items():
                if blocks is None:
                    tables.pop(int(row), None)
                else:
                    tables[int(row)] = blocks
            line["tables"] = dict(tables)
            trace.steps.append(line)
    return trace


def to_chrome(source: str | Path, target: str | Path) -> None:
    """Convert a trace file to Chrome's trace event format, which Perfetto shows.

    One track for the phases of the steps, one per sequence (its prompt chunks and decodes), one per request from
    arrival to end, and counters for blocks in use, running and waiting.
    """
    trace = read_trace(source)
    out: list[dict[str, Any]] = []
    for pid, name in ((1, "engine"), (2, "sequences"), (3, "requests")):
        out.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}})

    def span(pid: int, tid: int, name: str, begin: float, length: float, args: dict[str, Any]) -> None:
        times = {"ts": round(begin * 1e6, 1), "dur": round(length * 1e6, 1)}
        out.append({"ph": "X", "pid": pid, "tid": tid, "name": name, "args": args} | times)

    tracks = {r["request_id"]: i for i, r in enumerate(trace.requests)}
    arrived = {r["request_id"]: r["t"] for r in trace.requests}
    ended: dict[str, float] = {}
    for line in trace.steps:
        plan, phases, stats = line["plan"], line["phases"], line["stats"]
        number = plan["step"]
        for new in (*plan["starts"], *plan["forks"]):
            name = f"{line['owners'][str(new['seq_id'])]}.{new['stream']}"
            about = {"pid": 2, "tid": new["seq_id"], "name": "thread_name", "args": {"name": name}}
            out.append({"ph": "M"} | about)
        tokens = sum(s["n"] for s in plan["seqs"])
        for name, (begin, length) in phases.items():
            span(1, 1, name, begin, length, {"step": number, "sequences": len(plan["seqs"]), "tokens": tokens})
        begin = phases["forward"][0] if "forward" in phases else line["t"]
        end = max(b + d for b, d in phases.values())
        for seq in plan["seqs"]:
            name = "decode" if seq["n"] == 1 else f"prefill {seq['n']}"
            if seq["n_draft"]:
                name = f"decode, {seq['n_draft']} drafts"
            blocks = line["tables"].get(seq["row"], [])
            span(2, seq["seq_id"], name, begin, end - begin, {"step": number, **seq, "block_table": blocks})
        for event in line["events"]:
            if event["finish_reason"] is not None:
                ended[event["request_id"]] = end
        for name, values in (
            ("KV blocks", {"used": stats["blocks_used"]}),
            ("requests", {"running": stats["num_running"], "waiting": stats["num_waiting"]}),
        ):
            out.append({"ph": "C", "pid": 1, "tid": 0, "name": name, "ts": round(end * 1e6, 1), "args": values})
    for line in trace.ends:
        ended[line["request_id"]] = max(line["t"], ended.get(line["request_id"], 0.0))
    last = max((b + d for line in trace.steps for b, d in line["phases"].values()), default=0.0)
    for request_id, track in tracks.items():
        begin = arrived[request_id]
        span(3, track, request_id, begin, max(ended.get(request_id, last) - begin, 0), {})
    Path(target).write_text(json.dumps({"traceEvents": out, "displayTimeUnit": "ms"}), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """``python -m quire.reference.trace IN.jsonl OUT.json``"""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2:
        print("usage: python -m quire.reference.trace IN.jsonl OUT.json", file=sys.stderr)
        return 2
    try:
        to_chrome(arguments[0], arguments[1])
    except (OSError, ValueError) as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
