"""From ``StructuredOutputsParams`` to a grammar over the tokens of one tokenizer, by llguidance.

Chosen by measurement (``python -m benchmarks.grammar``; the table is in docs/structured.md). In everyday use a mask
costs nothing beside a forward pass: xgrammar takes 1 to 10 µs, llguidance 2 to 20. The rest decides. llguidance
compiles in 2 to 5 ms, since it looks at tokens when it meets them; xgrammar needs up to 700 ms for an ordinary schema.
No hostile grammar makes its masks slow (xgrammar's take up to 30 ms), because the work at every token has limits
(``LIMITS``) that end that one matcher. And what it does not implement it refuses, where xgrammar takes 999984 for a
multiple of 999983. Only compiling can still take seconds, of that very schema: hence ``validator``, and hence the
engine compiles in a thread (llguidance lets go of the interpreter meanwhile).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from quire.reference.control.errors import RequestError
from quire.reference.control.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Fuel is llguidance's unit of work: about 14,000 a millisecond, so no mask takes longer than some 15 ms. The states of
# a grammar's lexer are kept as they are found (50,000 take 4 MB), and shared by all its matchers.
LIMITS = {"step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 250_000, "verbose_errors": False}
USES = 256  # of one compiled grammar: a lexer that serves for weeks would reach its limit, if its states are that many
LOOK_AHEAD = 4  # tokens
CACHE_ENTRIES = 64
CACHE_BYTES = 512 << 20
# Nobody can ask the library for a grammar's size. Compiling fills memory no faster than this (measured: 150 MB/s with
# 20,000 enum values, 90 MB/s with a large multipleOf), so the time it took bounds the size.
BYTES_PER_SECOND = 150 << 20
BYTES_PER_CHARACTER = 32


@dataclass(slots=True)
class _Entry:
    """A compiled grammar, its size in bytes (estimated) and how often it was handed out."""

    grammar: LLMatcher
    size: int
    uses: int = 0


class Compiler:
    """Compiled grammars over one tokenizer's vocabulary, the latest of them kept. May be called from any thread.

    tokenizer   returns a fast transformers tokenizer; called when the first grammar is compiled. None: there is none
    """

    def __init__(self, tokenizer: Callable[[], Any] | None) -> None:
        self._load = tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[StructuredOutputsParams, _Entry] = OrderedDict()
        self._lock = Lock()  # of the cache
        self._building = Lock()  # of the tokenizer
        self._thread: ThreadPoolExecutor | None = None

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance keeps it, a trie of its tokens' bytes. RequestError if there is none."""
        with self._building:
            if self._load is None:
                raise RequestError(
                    "structured_outputs", "…", "the engine was given no tokenizer", "Build the engine with one"
                )
            if self._tokenizer is None:
                self._tokenizer = build_tokenizer(*serialise(self._load()))
            return self._tokenizer

    def find(self, params: StructuredOutputsParams) -> LLMatcher | None:
        """The grammar, if it is there: a matcher at its beginning, to be copied (which takes microseconds)."""
        with self._lock:
            entry = self._cache.get(params)
            if entry is None or entry.uses >= USES:
                return None
            entry.uses += 1
            self._cache.move_to_end(params)
            return entry.grammar

    def forget(self, params: StructuredOutputsParams) -> None:
        """Compile it anew the next time: its lexer has reached a limit."""
        with self._lock:
            self._cache.pop(params, None)

    def compile(self, params: StructuredOutputsParams) -> LLMatcher:
        """The grammar, compiled now if it is not there. RequestError if it is none, or nothing can satisfy it."""
        found = self.find(params)
        if found is not None:
            return found
        tokenizer = self.tokenizer
        began = time.perf_counter()
        grammar = compile_grammar(tokenizer, params)
        value = getattr(params, params.kind)
        length = len(value) if isinstance(value, str) else 0 if value is True else sum(map(len, value))
        size = int(BYTES_PER_SECOND * (time.perf_counter() - began)) + BYTES_PER_CHARACTER * length
        with self._lock:
            self._cache[params] = _Entry(grammar, size)
            self._cache.move_to_end(params)
            total = sum(entry.size for entry in self._cache.values())
            while len(self._cache) > CACHE_ENTRIES or (total > CACHE_BYTES and len(self._cache) > 1):
                total -= self._cache.popitem(last=False)[1].size
        return grammar

    def submit(self, params: StructuredOutputsParams) -> Future[LLMatcher]:
        """Compile in the background, one at a time."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "grammar")
        return self._thread.submit(self.compile, params)

    def close(self) -> None:
        """Forget what waits to be compiled."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None


def serialise(tokenizer: Any) -> tuple[str, int | None]:
    """A fast transformers tokenizer as JSON text, and its end-of-sequence id. RequestError if it is no fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RequestError(
            "structured_outputs", "…", f"the model's tokenizer ({type(tokenizer).__name__}) is not a fast one",
            "Use a checkpoint that has a tokenizer.json",
        )  # fmt: skip
    if backend.truncation is not None or backend.padding is not None:  # they belong to encoding, and stay as they are
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
    return backend.to_str(), tokenizer.eos_token_id


def build_tokenizer(text: str, eos_token_id: int | None) -> LLTokenizer:
    """llguidance's tokenizer. Takes 25 ms for 4,096 tokens, 0.7 s for 150,000, and no other thread runs meanwhile."""
    try:
        from llguidance import LLTokenizer
    except ImportError:
        raise RequestError(
            "structured_outputs", "…", "the package llguidance is not installed", "pip install 'quire[server]'"
        ) from None
    return LLTokenizer(text, eos_token=eos_token_id)


def compile_grammar(tokenizer: LLTokenizer, params: StructuredOutputsParams) -> LLMatcher:
    """A matcher at the beginning of the grammar. Raises RequestError with the library's own words, made short."""
    from llguidance import LLMatcher, LLParserLimits

    field, value = f"structured_outputs.{params.kind}", getattr(params, params.kind)
    limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
    try:
        matcher = LLMatcher(tokenizer, source(params), log_level=0, limits=limits)
        problem = matcher.get_error()
    except ValueError as error:  # what it finds before it compiles
        problem = str(error)
    if not problem:
        problem = look_ahead(matcher.deep_copy())
    if problem:
        raise RequestError(field, value, f"not usable: {short(problem)}", "Correct or simplify it")
    return matcher


def look_ahead(matcher: LLMatcher) -> str:
    """Go a few tokens into the grammar: what is wrong there, such as a limit that one step passes; "" if nothing is."""
    for _ in range(LOOK_AHEAD):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        problem = matcher.get_error()
        if problem.startswith("NoExtension"):
            return "no text can satisfy it"
        if problem or matcher.is_stopped():
            return problem
        matcher.consume_token(int(bits.argmax()))
    return matcher.get_error()


def source(params: StructuredOutputsParams) -> str:
    """The grammar in the form that llguidance's matcher takes."""
    from llguidance import LLMatcher

    if params.kind in ("json", "json_object"):
        schema = params.json if isinstance(params.json, str) else '{"type": "object"}'
        schema = {"true": "{}", "false": '{"allOf": [false]}'}.get(schema, schema)  # options go into an object only
        options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
        if params.whitespace_pattern is not None:
            options["whitespace_pattern"] = params.whitespace_pattern
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)  # type: ignore[arg-type]
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return LLMatcher.grammar_from_regex("|".join("".join(map(_escape, text)) for text in params.choice))
    assert params.grammar is not None
    return LLMatcher.grammar_from_lark(params.grammar)


def _escape(character: str) -> str:
    return character if character.isalnum() or character == " " else f"\\x{{{ord(character):x}}}"


def short(problem: str) -> str:
    """A message of llguidance as one line of at most 200 characters, without the state that it prints."""
    line = " ".join(problem.partition("\n<")[0].split())
    return line if len(line) <= 200 else line[:199] + "…"
