"""The validator's worker process: compiles what it is told to, one line of JSON in, one line of JSON out.

The first line is the tokenizer and the memory that compiling may take, every other one a ``StructuredOutputsParams``.
The answer is null, or what is wrong. It ends with its standard input, or at any time when the parent kills it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

from quire.reference.control.errors import RequestError
from quire.reference.control.structured import StructuredOutputsParams
from quire.reference.structured.compiler import build_tokenizer, compile_grammar

STACK = 2 << 20  # bytes, a quarter of what the engine's threads have: what is too deeply nested crashes here, not there


def main() -> None:
    """Serve in a thread, since a thread's stack has the size that one asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent
    threading.stack_size(STACK)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()


def serve() -> None:
    setup = json.loads(sys.stdin.readline())
    try:
        tokenizer = build_tokenizer(setup["tokenizer"], setup["eos"])
    except Exception as error:  # a tokenizer that llguidance cannot read, or no llguidance
        answer(str(error))
        return
    limit_memory(setup["memory"])
    answer(None)
    for line in sys.stdin:
        try:
            compile_grammar(tokenizer, StructuredOutputsParams(**json.loads(line)))
            answer(None)
        except RequestError as error:
            answer([error.problem, error.remedy])


def limit_memory(more: int) -> None:
    """Allow ``more`` bytes of address space than are in use now. Only Linux says how many these are."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more, in_use + more))


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)
