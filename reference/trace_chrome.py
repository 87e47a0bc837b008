"""A trace as a file for https://ui.perfetto.dev or chrome://tracing: Chrome's trace event format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.reference.trace import read_trace


def to_chrome(source: str | Path, target: str | Path) -> None:
    """Convert a trace file to Chrome's trace event format, which Perfetto shows.

    One track for the phases of the steps, one per sequence (its prompt chunks and decodes), one per request from
    arrival to end, and counters for blocks in use, running and waiting.
    """
    trace = read_trace(source)
    out: list[dict[str, Any]] = []
    for pid, name in ((1, "engine"), (2, "sequences"), (3, "requests")):
        out.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}})

    for seq_id, (request_id, stream) in trace.sequences.items():
        name = f"{request_id}.{stream}"
        out.append({"ph": "M", "pid": 2, "tid": seq_id, "name": "thread_name", "args": {"name": name}})

    def span(pid: int, tid: int, name: str, begin: float, length: float, args: dict[str, Any]) -> None:
        times = {"ts": round(begin * 1e6, 1), "dur": round(length * 1e6, 1)}
        out.append({"ph": "X", "pid": pid, "tid": tid, "name": name, "args": args} | times)

    tracks = {r["request_id"]: i for i, r in enumerate(trace.requests)}
    arrived = {r["request_id"]: r["t"] for r in trace.requests}
    ended: dict[str, float] = {}
    for line in trace.steps:
        plan, phases, stats = line["plan"], line["phases"], line["stats"]
        number = plan["step"]
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
