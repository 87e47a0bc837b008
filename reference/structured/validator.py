"""Says whether a grammar is usable before the engine sees it, at a limited price: for the server's API process.

A schema comes from anybody. Whatever compiling it costs is paid by a worker process (module ``worker``) that is
killed at a time limit and cannot have more than so much memory; the next check starts another. What passes
compiles within the limits, so the engine, which does it again in a thread of its own, is in no danger either.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any

import quire
from quire.reference.control.errors import RequestError
from quire.reference.control.structured import StructuredOutputsParams
from quire.reference.structured.compiler import serialise

STARTING = 60.0  # seconds; it takes half of one with 150,000 tokens
VERDICTS = 4096  # remembered; each is a line of text

Verdict = tuple[str, str] | None  # problem and remedy; None = usable


class StructuredValidator:
    """Checks grammars one after the other. May be used from any thread, and from an event loop.

    tokenizer      returns the model's (transformers', a fast one), when first needed
    time_limit     seconds that compiling may take
    memory_limit   bytes that it may take (on Linux; elsewhere only the time is limited)
    """

    def __init__(self, tokenizer: Callable[[], Any], *, time_limit: float = 2.0, memory_limit: int = 256 << 20) -> None:
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._load = tokenizer
        self._setup: str | None = None
        self._worker: subprocess.Popen[str] | None = None
        self._lock = Lock()  # one question to the worker at a time
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "grammar-check")

    async def check(self, params: StructuredOutputsParams) -> None:
        """``validate``, without stopping the event loop."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.validate, params)

    def validate(self, params: StructuredOutputsParams) -> None:
        """Raise RequestError if the grammar is none, if nothing can satisfy it, or if it passes the limits."""
        key = hashlib.sha256(repr(params).encode()).digest()
        with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = self._ask(params)
            self._verdicts.move_to_end(key)
            verdict = self._verdicts[key]
            if len(self._verdicts) > VERDICTS:
                self._verdicts.popitem(last=False)
        if verdict is not None:
            raise RequestError(f"structured_outputs.{params.kind}", getattr(params, params.kind), *verdict)

    def close(self) -> None:
        """End the worker, in the middle of what it does if need be."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()

    def _ask(self, params: StructuredOutputsParams) -> Verdict:
        worker = self._worker
        if worker is None or worker.poll() is not None:
            worker = self._worker = self._start()
        answer, late = exchange(worker, json.dumps(asdict(params)), self.time_limit)
        if answer and not late:
            verdict = json.loads(answer)
            return None if verdict is None else (verdict[0], verdict[1])
        self._worker = None
        status = worker.wait()
        if late:
            return f"takes longer than {self.time_limit:g} s to compile", "Simplify it"
        memory = f"{self.memory_limit >> 20} MiB of memory"
        return (
            f"the compiler gave up (status {status}): {memory} do not suffice, or it is nested too deeply",
            "Simplify it",
        )

    def _start(self) -> subprocess.Popen[str]:
        if self._setup is None:
            text, eos = serialise(self._load())
            self._setup = json.dumps({"tokenizer": text, "eos": eos, "memory": self.memory_limit})
        root = str(Path(quire.__file__).resolve().parents[1])
        code = f"import sys; sys.path.insert(0, {root!r}); from quire.reference.structured.worker import main; main()"
        worker = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # else a thread reserves memory that the limit would not count
        )  # fmt: skip
        answer, _ = exchange(worker, self._setup, STARTING)
        if answer.strip() != "null":
            worker.kill()
            worker.wait()
            problem = json.loads(answer) if answer else "no answer"
            raise RequestError(
                "structured_outputs", "…", f"the grammar compiler does not start ({problem})",
                "Leave structured_outputs out, or report this with the name of the model",
            )  # fmt: skip
        return worker


def exchange(worker: subprocess.Popen[str], line: str, limit: float) -> tuple[str, bool]:
    """Send a line and wait for one; empty if the worker is dead. After ``limit`` seconds it is, and True says why."""
    assert worker.stdin is not None and worker.stdout is not None
    late = Event()

    def give_up() -> None:
        late.set()
        worker.kill()

    timer = Timer(limit, give_up)
    timer.start()
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except OSError:
        answer = ""
    timer.cancel()
    return answer, late.is_set()
