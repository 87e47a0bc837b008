"""Records the scenarios: ``python -m quire.ui.record [--out FOLDER] [NAME …]`` writes FOLDER/NAME.jsonl for each.

They are those of the Lab, and the pairs of the documentation (scenarios.py, pairs.py). For each it starts a server of
its own with the scenario's engine arguments, listens to /trace, plays the requests, and keeps what it heard until all
is quiet again: the very lines of a real engine. They are made smaller, as the format allows: fields at their defaults
are left out, times are rounded to microseconds, and requests, sequences and steps are numbered from 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from quire.ui import static
from quire.ui.pairs import PAIRS
from quire.ui.scenarios import SCENARIOS, Scenario, play

Line = dict[str, Any]

WARM_UP = {"prompt": "Once upon a time", "max_tokens": 4, "cache_salt": "warm-up"}
SEQ_DEFAULTS: Line = {"n_draft": 0, "new_blocks": [], "write": True, "pools": False, "propose": 0}
EVENT_DEFAULTS: Line = {"finish_reason": None, "num_cached_tokens": 0}
LAST = 5.0  # seconds to wait for the last lines once all answers are there


@asynccontextmanager
async def server(engine: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """``quire serve --enable-trace`` with these engine arguments on a free port, and a client for it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quire.server", "--port", "0", "--enable-trace", *flags(engine),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    log = b""
    try:
        while (found := re.search(rb"listening on (http://\S+)", log)) is None:
            chunk = await process.stderr.read(4096)
            if not chunk:
                raise RuntimeError(f"the server did not start:\n{log.decode(errors='replace')}")
            log += chunk
        drain = asyncio.ensure_future(process.stderr.read())  # a full pipe would hold the server up
        async with httpx.AsyncClient(base_url=found[1].decode(), timeout=120) as client:
            yield client
        process.terminate()
        await drain
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def flags(engine: dict[str, Any]) -> list[str]:
    """Engine arguments as ``quire serve`` takes them."""
    words = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


async def record(one: Scenario) -> list[Line]:
    """Play a scenario against a server of its own; the lines of its trace."""
    async with server(dict(one.engine)) as client:
        (await client.post("/v1/completions", json=WARM_UP)).raise_for_status()
        await client.post("/reset_prefix_cache")
        lines: list[Line] = []
        begun, ended = asyncio.Event(), asyncio.Event()

        async def listen() -> None:
            async with client.stream("GET", "/trace", timeout=None) as stream:
                async for text in stream.aiter_lines():
                    if text.startswith("data: "):
                        lines.append(json.loads(text.removeprefix("data: ")))
                        begun.set()
                        if answered and quiet(lines[-1]):
                            ended.set()

        answered = False
        listening = asyncio.ensure_future(listen())
        await begun.wait()
        for response in await play(one, client):
            response.raise_for_status()
        answered = True
        if not quiet(lines[-1]):
            await asyncio.wait_for(ended.wait(), LAST)
        listening.cancel()
        return lines


def quiet(line: Line) -> bool:
    """Whether nobody runs or waits after this step."""
    return line["type"] == "step" and not line["stats"]["num_running"] and not line["stats"]["num_waiting"]


def smaller(lines: Iterable[Line]) -> list[Line]:
    """The same lines, numbered from 0 and without what may be left out. They are changed in place."""
    header, state, *rest = lines
    steps = [line for line in rest if line["type"] == "step"]
    first_step, origin = state["step"], min(line["t"] for line in rest)
    first_seq = min(start["seq_id"] for step in steps for start in step["plan"]["starts"])
    names: dict[str, str] = {}
    for line in (state, *rest):
        line["t"] = max(0.0, round(line["t"] - origin, 6))
        if "request_id" in line:
            line["request_id"] = names.setdefault(line["request_id"], f"req-{len(names)}")
    state["step"] = 0
    state["stats"] = without_zeros(state["stats"])
    for step in steps:
        step["phases"] = {
            k: [round(begin - origin, 6), round(length, 6)] for k, (begin, length) in step["phases"].items()
        }
        plan = step["plan"]
        plan["step"] -= first_step
        step["result"]["step"] -= first_step
        plan["seqs"] = [without(SEQ_DEFAULTS, seq) for seq in plan["seqs"]]
        step["events"] = [without(EVENT_DEFAULTS, event) for event in step["events"]]
        for part in (*plan["starts"], *plan["forks"], *plan["seqs"]):
            part["seq_id"] -= first_seq
        step["owners"] = {int(seq_id) - first_seq: names[request] for seq_id, request in step["owners"].items()}
        for event in step["events"]:
            event["request_id"] = names[event["request_id"]]
        step["stats"] = without_zeros(step["stats"])
    return [header, state, *rest]


def without(defaults: Line, line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in defaults or defaults[name] != value}


def without_zeros(stats: Line) -> Line:
    return {name: value for name, value in stats.items() if value}


def main() -> int:
    scenarios = {one.name: one for one in (*SCENARIOS, *PAIRS)}
    parser = argparse.ArgumentParser(description="Record scenarios with the real engine")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(scenarios)}; all without any")
    parser.add_argument("--out", type=Path, default=static().with_name("traces"), metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or scenarios:
        lines = smaller(asyncio.run(record(scenarios[name])))
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (arguments.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {sum(line['type'] == 'step' for line in lines)} steps, {len(text) // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
