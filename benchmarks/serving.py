"""The server under load, against the offline engine on the same requests: throughput, lost tokens, steadiness, chaos.

    python -m benchmarks.serving [--model pocket] [--repeat 3] [--rounds 10] [--json PATH]

The engine has one thread on one core, offline and behind ``quire serve``; the API process and the clients share
another. Every request's tokens are compared with the offline engine's.

    saturation            tokens per second through HTTP, 200 streams at once; ratio to the offline engine with text
                          (``offline``, as ``LLM.generate`` is used) and without (``offline-ids``: nothing but steps)
    streams-lost          streams of that load that did not bring all tokens and a proper end
    streams-wrong         streams that brought other tokens than offline
    itl-p99-over-median   gaps between the tokens of a stream, Poisson arrivals at half of the saturated rate, with
                          ``--max-num-batched-tokens 32``: what a step computes of new prompts all streams wait for
    chaos-lost, -wrong    the same counts for rounds of 1,000 requests in which 30% of the clients vanish in
                          mid-stream, 5% of the bodies are bad and 5% of the prompts too long
    chaos-blocks          KV blocks still in use after all rounds
    rss-growth            memory of the server's processes after the last round, against after one for warming up
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.workload import Job, mixed
from quire.report import Row, show, write

STREAMS = 200
CONFIG = {"max_num_seqs": STREAMS, "max_num_batched_tokens": 256, "num_blocks": 3000}
STEADY = CONFIG | {"max_num_batched_tokens": 32}  # prompts in small pieces, so that no step takes long
ENGINE_CORE, CLIENT_CORE = 0, 1
TOO_LONG = [1] * 100_000


# --- offline ----------------------------------------------------------------------------------------------------------


def offline(model: str, jobs: list[Job], repeat: int) -> tuple[list[list[int]], list[float], list[float]]:
    """Token ids of every job, and tokens per second of each run, with text and without. Runs on the engine's core."""
    os.sched_setaffinity(0, {ENGINE_CORE})
    from quire import LLM, SamplingParams

    ids: list[list[int]] = []
    speeds: dict[bool, list[float]] = {True: [], False: []}
    with LLM(model, **CONFIG) as llm:
        for turn in range(repeat + 1):  # the first one warms up
            for text in speeds:
                llm.reset_prefix_cache()
                params = [
                    SamplingParams(temperature=0, max_tokens=j.output_len, ignore_eos=True, detokenize=text)
                    for j in jobs
                ]
                began = time.perf_counter()
                outputs = llm.generate([j.prompt for j in jobs], params, use_tqdm=False)
                if turn:
                    speeds[text].append(sum(j.output_len for j in jobs) / (time.perf_counter() - began))
                ids = [o.outputs[0].token_ids for o in outputs]
    return ids, speeds[True], speeds[False]


def in_a_process_of_its_own(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running ``quire serve``."""

    process: subprocess.Popen[bytes]
    port: int = 0

    def children(self) -> dict[int, str]:
        """Process id -> role of each child."""
        found = {}
        for line in subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.split(
            "\n"
        ):
            if (words := line.split()) and words[1] == str(self.process.pid):
                found[int(words[0])] = words[-1]
        return found

    def pin(self) -> None:
        """Every thread of the engine on its core, everything else on the other."""
        for pid, role in self.children().items():
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {ENGINE_CORE if role == "engine" else CLIENT_CORE})

    def rss(self) -> float:
        """MiB in memory, of engine and API processes together."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.children())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            text: str = response.read().decode()
            return text

    def gauge(self, name: str) -> float:
        found = re.search(rf"^quire:{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, f"no metric {name}"
        return float(found[1])

    def reset(self) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/reset_prefix_cache", method="POST")
        urllib.request.urlopen(request, timeout=60).close()


@contextmanager
def quire_serve(model: str, config: dict[str, int]) -> Iterator[Server]:
    flags = [text for name, value in config.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "quire.server", model, "--port", "0", "--disable-log-requests", *flags]
    with tempfile.TemporaryFile() as log:
        server = Server(subprocess.Popen(command, stderr=log))
        try:
            while True:
                log.seek(0)
                said = log.read().decode()
                if found := re.search(r"listening on http://[^ ]*:(\d+)", said):
                    break
                assert server.process.poll() is None, said
                time.sleep(0.05)
            server.port = int(found[1])
            server.pin()
            yield server
        finally:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()


# --- clients ----------------------------------------------------------------------------------------------------------


def body(job: Job) -> bytes:
    return json.dumps(
        {
            "prompt": job.prompt,
            "max_tokens": job.output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
    ).encode()


@dataclass
class Stream(asyncio.Protocol):
    """One request over a connection of its own. What comes is kept with its time, and read when all is over.

    ``vanish`` hangs up after so many pieces of the answer.
    """

    request: bytes
    vanish: int | None = None
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(self.request)}\r\n\r\n"
        )
        transport.write(head.encode() + self.request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if len(self.pieces) == self.vanish:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    # --- read when it is over ---

    @property
    def status(self) -> int:
        return int(self.pieces[0][1].split(b" ", 2)[1]) if self.pieces else 0

    def token_ids(self) -> list[int] | None:
        """All tokens of the stream; None if it did not come to its proper end."""
        lines = b"".join(data for _, data in self.pieces).split(b"\n")
        events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
        if self.status != 200 or not events or events.pop() != b"[DONE]":
            return None
        choices = [choice for event in events for choice in json.loads(event).get("choices", ())]
        if not choices or choices[-1]["finish_reason"] != "length":
            return None
        return [token_id for choice in choices for token_id in choice["token_ids"]]

    def gaps(self) -> list[float]:
        times = [when for when, data in self.pieces if b'"choices"' in data]
        return [b - a for a, b in pairwise(times)]


async def send(port: int, request: bytes, vanish: int | None = None) -> Stream:
    stream = Stream(request, vanish)
    await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", port)
    await stream.done
    return stream


async def send_all(port: int, requests: list[tuple[bytes, int | None]], at_once: int) -> list[Stream]:
    """All requests in order, so many at a time."""
    turn = asyncio.Semaphore(at_once)

    async def one(request: bytes, vanish: int | None) -> Stream:
        async with turn:
            return await send(port, request, vanish)

    return await asyncio.gather(*(one(*request) for request in requests))


async def send_poisson(port: int, requests: list[bytes], per_second: float) -> list[Stream]:
    rng = random.Random(0)
    tasks = []
    for request in requests:
        tasks.append(asyncio.create_task(send(port, request)))
        await asyncio.sleep(rng.expovariate(per_second))
    return await asyncio.gather(*tasks)


def compare(streams: list[Stream], expected: list[list[int]]) -> tuple[int, int]:
    """How many streams lost tokens, and how many brought wrong ones."""
    came = [stream.token_ids() for stream in streams]
    lost = sum(ids is None or len(ids) < len(want) for ids, want in zip(came, expected, strict=True))
    wrong = sum(ids is not None and ids != want[: len(ids)] for ids, want in zip(came, expected, strict=True))
    return lost, wrong


# --- chaos ------------------------------------------------------------------------------------------------------------

BAD = [
    (b'{"prompt": "never closed', 400),
    (b'{"prompt": "a", "max_tokens": "many"}', 400),
    (b'{"prompt": "a", "no_such_field": 1}', 400),
    (b'{"prompt": "a", "model": "nobody"}', 404),
    (b"\x00\xff" * 1000, 400),
]


def chaos_round(server: Server, jobs: list[Job], expected: list[list[int]], seed: int) -> tuple[int, int]:
    """One round; the number of requests that lost something, and of those that got something wrong."""
    rng = random.Random(seed)
    requests: list[tuple[bytes, int | None]] = []
    wanted: list[int | list[int] | None] = []  # an error's status, the tokens, or nothing
    for job, ids in zip(jobs, expected, strict=True):
        draw = rng.random()
        if draw < 0.30:
            requests.append((body(job), rng.randint(1, 8)))
            wanted.append(None)
        elif draw < 0.35:
            text, status = rng.choice(BAD)
            requests.append((text, None))
            wanted.append(status)
        elif draw < 0.40:
            requests.append((json.dumps({"prompt": TOO_LONG}).encode(), None))
            wanted.append(400)
        else:
            requests.append((body(job), None))
            wanted.append(ids)
    streams = asyncio.run(send_all(server.port, requests, 64))
    lost = wrong = 0
    for stream, want in zip(streams, wanted, strict=True):
        if isinstance(want, int):
            wrong += stream.status != want
        elif want is not None:
            one_lost, one_wrong = compare([stream], [want])
            lost, wrong = lost + one_lost, wrong + one_wrong
    return lost, wrong


def wait_until_idle(server: Server) -> None:
    while server.gauge("num_requests_running") + server.gauge("num_requests_waiting"):
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {CLIENT_CORE})

    jobs = mixed(args.requests, (16, 128), (32, 160), 2000)
    short = mixed(1000, (8, 64), (8, 32), 2000, seed=1)
    expected, with_text, without = in_a_process_of_its_own(offline, args.model, jobs, args.repeat)
    expected_short, _, _ = in_a_process_of_its_own(offline, args.model, short, 1)
    tokens = sum(job.output_len for job in jobs)

    with quire_serve(args.model, CONFIG) as server:
        speeds, lost, wrong = [], 0, 0
        for turn in range(args.repeat + 1):  # the first one warms up
            server.reset()
            began = time.perf_counter()
            streams = asyncio.run(send_all(server.port, [(body(job), None) for job in jobs], STREAMS))
            if turn:
                speeds.append(tokens / (time.perf_counter() - began))
            once_lost, once_wrong = compare(streams, expected)
            lost, wrong = lost + once_lost, wrong + once_wrong
        saturated = median(speeds)

        chaos_lost = chaos_wrong = 0
        rss = []
        for number in range(args.rounds + 1):
            once_lost, once_wrong = chaos_round(server, short, expected_short, number)
            chaos_lost, chaos_wrong = chaos_lost + once_lost, chaos_wrong + once_wrong
            wait_until_idle(server)
            rss.append(server.rss())
        leaked = server.gauge("kv_cache_usage_perc")

    with quire_serve(args.model, STEADY) as server:
        rate = saturated / 2 / (tokens / len(jobs))
        streams = asyncio.run(send_poisson(server.port, [body(job) for job in jobs], rate))
        once_lost, once_wrong = compare(streams, expected)
        lost, wrong = lost + once_lost, wrong + once_wrong
        gaps = [gap for stream in streams for gap in stream.gaps()]
        p99 = quantiles(gaps, n=100)[98]

    rows = [
        Row("offline", median(with_text), "tok/s, one core"),
        Row("offline-ids", median(without), "tok/s, one core"),
        Row(
            "saturation",
            saturated,
            f"tok/s, {STREAMS} streams",
            {"offline": saturated / median(with_text), "offline-ids": saturated / median(without)},
        ),
        Row("streams-lost", lost, f"of {len(jobs) * (args.repeat + 2)}"),
        Row("streams-wrong", wrong, f"of {len(jobs) * (args.repeat + 2)}"),
        Row("itl-median", 1000 * median(gaps), "ms, Poisson at half load"),
        Row("itl-p99", 1000 * p99, "ms"),
        Row("itl-p99-over-median", p99 / median(gaps), "×", {"limit-3": 3 * median(gaps) / p99}),
        Row("chaos-lost", chaos_lost, f"of {len(short) * (args.rounds + 1)}"),
        Row("chaos-wrong", chaos_wrong, f"of {len(short) * (args.rounds + 1)}"),
        Row("chaos-blocks", leaked, "share of the KV cache in use at the end"),
        Row("rss", rss[-1], "MiB, engine and API process"),
        Row("rss-growth", 100 * (rss[-1] / rss[0] - 1), f"% over {args.rounds} rounds"),
    ]
    show(rows, f"{args.model}: quire serve, engine on one core, API process and clients on another")
    if args.json:
        write(args.json, rows, "python -m benchmarks.serving")


if __name__ == "__main__":
    main()
