"""Which grammar library: how long compiling a grammar takes, and the mask of one token; llguidance against xgrammar.

    python -m benchmarks.grammar [--cases nested,regex] [--json PATH]

Two vocabularies: the embedded model's (4,096 tokens) and one of 150,000, made up here. For each case a text that has
the form is taken token by token, five times over; the figures are compile time, and median and 99th percentile of the
time for one mask. Every measurement has a process of its own, because some cases are hostile: it is killed after 20
seconds, or at 8 GiB. A ratio of 2 against xgrammar says that llguidance takes half the time. Behind the unit stands
what did not go well: "refused", "killed" and "crashed" before there was a mask, "stops" amid the text, "lax": a text
that has not the form is taken too. Without xgrammar (pip install xgrammar) its side stays empty.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from quire import RequestError, StructuredOutputsParams
from quire.report import Row, show, write

LIMIT = 20.0  # seconds for one case, everything included
MEMORY = 8 << 30
ROUNDS = 5
Mask = Callable[[], object]
Take = Callable[[int], bool]

ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "customer": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "email": {"type": "string", "pattern": "^[a-z.]+@[a-z.]+$"}},
            "required": ["name", "email"],
            "additionalProperties": False,
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "maxLength": 60},
                    "price": {"type": "number"},
                    "colour": {"enum": ["red", "green", "blue", None]},
                },
                "required": ["title", "price", "colour"],
                "additionalProperties": False,
            },
        },
        "paid": {"type": "boolean"},
    },
    "required": ["id", "customer", "items", "paid"],
    "additionalProperties": False,
}
ITEM = {"title": "A kettle, nearly new", "price": 12.5, "colour": "blue"}
ORDER_TEXT = json.dumps(
    {"id": 4711, "customer": {"name": "Tara Lind", "email": "tara@lind.org"}, "items": [ITEM] * 3, "paid": True}
)
Form = StructuredOutputsParams


def _doubling(depth: int) -> dict[str, Any]:
    """A schema whose references, written out, are 2 ** depth."""
    inner = {f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "lr"}} for i in range(depth)}
    return {"$defs": inner | {f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0", "type": "object"}


# name: (form, a text that has it, one that does not). From "repetitions" on they are what an attacker might send.
CASES: dict[str, tuple[StructuredOutputsParams, str, str]] = {
    "nested": (Form(json=ORDER), ORDER_TEXT, '{"id": 1}'),
    "json_object": (Form(json_object=True), ORDER_TEXT, "[1]"),
    "regex": (Form(regex=r"\+?\d{1,3}( \d{2,4}){2,4}|[a-z.]+@[a-z]+\.(com|org)"), "tara.lind@example.org", "tara@"),
    "choice": (Form(choice=[f"label number {i}" for i in range(100)]), "label number 47", "label number 101"),
    "repetitions": (Form(json={"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}), '"' + "a" * 200 + '"', '"b"'),
    "backtracking": (Form(regex="(x+x+)+y"), "x" * 200 + "y", "y"),
    "states": (Form(regex="(.*e.{14}){1,9}"), "the needle is where nobody else ever searched " * 3, "short"),
    "enum": (Form(json={"enum": [f"value {i * 7919}" for i in range(12_000)]}), '"value 15838"', '"value 1"'),
    "properties": (Form(json={"type": "object", "properties": {f"p{i}": {} for i in range(2000)}}), '{"p1": 1}', "[]"),
    "doubling": (Form(json=_doubling(40)), '{"l": {"l": {"r": {}}}}', "[]"),
    "recursion": (Form(json={"type": "array", "items": {"$ref": "#"}}), "[" * 50 + "]" * 50, "[1]"),
    "deep": (Form(json='{"type": "array", "items": ' * 120 + "{}" + "}" * 120), "[" * 100 + "]" * 100, "{}"),
    "multiple": (Form(json={"type": "integer", "multipleOf": 999_983}), "999983", "999984"),
    "nothing": (Form(json={"$ref": "#"}), "1", "{}"),
}


@dataclass
class Measured:
    """One case with one library: seconds to compile, seconds of each mask; how it went."""

    outcome: str
    compile: float = 0.0
    masks: tuple[float, ...] = ()


def large_tokenizer(path: Path, vocab_size: int = 150_000) -> None:
    """Write a made-up byte-level BPE tokenizer: words of syllables, most with a space before them, numbers, signs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    rng = random.Random(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    merges: list[tuple[str, str]] = []
    while len(tokens) < vocab_size:
        word = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 5)))
        kind = rng.random()
        if kind < 0.05:
            word = str(rng.randrange(1000))
        elif kind < 0.1:
            word = "".join(rng.choice("\"'{}[]():,.;=-_/\\") for _ in range(rng.randint(2, 4)))
        elif kind < 0.25:
            word = "".join(rng.choice(alphabet[100:]) for _ in range(rng.randint(2, 6)))  # other scripts' bytes
        elif kind < 0.4:
            word = word.capitalize()
        text = ("Ġ" if rng.random() < 0.5 else "") + word
        for end in range(2, len(text) + 1):
            if text[:end] not in tokens and len(tokens) < vocab_size:
                tokens[text[:end]] = len(tokens)
                merges.append((text[: end - 1], text[end - 1]))
    core = Tokenizer(models.BPE(vocab=tokens, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|end|>"])
    core.save(str(path))


def by_llguidance(tokenizer: Any, form: StructuredOutputsParams) -> tuple[float, Callable[[], tuple[Mask, Take]]]:
    """Seconds to compile, and a function that gives a new matcher's two operations. As quire uses it."""
    from quire.reference.structured.compiler import build_tokenizer, compile_grammar, serialise

    vocabulary = build_tokenizer(*serialise(tokenizer))
    began = time.perf_counter()
    grammar = compile_grammar(vocabulary, form)
    seconds = time.perf_counter() - began

    def new() -> tuple[Mask, Take]:
        matcher = grammar.deep_copy()
        return matcher.compute_bitmask, matcher.consume_token

    return seconds, new


def by_xgrammar(tokenizer: Any, form: StructuredOutputsParams) -> tuple[float, Callable[[], tuple[Mask, Take]]]:
    """The same with xgrammar; all its threads may compile."""
    import xgrammar

    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    compiler = xgrammar.GrammarCompiler(info, cache_enabled=False)
    began = time.perf_counter()
    try:
        if form.json is not None or form.json_object:
            compiled = compiler.compile_json_schema(str(form.json or '{"type": "object"}'), strict_mode=False)
        elif form.regex is not None:
            compiled = compiler.compile_regex(form.regex)
        else:
            compiled = compiler.compile_grammar("root ::= " + " | ".join(json.dumps(c) for c in form.choice or ()))
    except RuntimeError as error:
        raise RequestError("grammar", form, str(error), "") from None
    seconds = time.perf_counter() - began
    bitmask = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    def new() -> tuple[Mask, Take]:
        matcher = xgrammar.GrammarMatcher(compiled)
        return partial(matcher.fill_next_token_bitmask, bitmask), matcher.accept_token

    return seconds, new


LIBRARIES = {"llguidance": by_llguidance, "xgrammar": by_xgrammar}


def measure_here(library: str, tokenizer_file: str, case: str) -> Measured:
    from transformers import PreTrainedTokenizerFast

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, eos_token="<|end|>")
    form, text, wrong = CASES[case]
    try:
        seconds, new = LIBRARIES[library](tokenizer, form)
    except RequestError:
        return Measured("refused")
    masks = []
    outcome = "works"
    for _ in range(ROUNDS):
        mask, take = new()
        for token in tokenizer.encode(text, add_special_tokens=False):
            began = time.perf_counter()
            mask()
            masks.append(time.perf_counter() - began)
            if not take(token):
                outcome = "stops"
                break
    _, take = new()
    if all(take(token) for token in [*tokenizer.encode(wrong, add_special_tokens=False), tokenizer.eos_token_id]):
        outcome = "lax"
    return Measured(outcome, seconds, tuple(masks))


def measure(library: str, tokenizer_file: str, case: str) -> Measured:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grammar", "--one", library, tokenizer_file, case]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return Measured("killed")
    return Measured(**json.loads(done.stdout)) if done.returncode == 0 else Measured("crashed")


def rows(name: str, ours: Measured, theirs: Measured | None) -> list[Row]:
    """Compile time, median and 99th percentile of a mask, of llguidance and against xgrammar."""
    figures: dict[str, tuple[str, float, Callable[[Measured], float]]] = {
        "compile": ("ms", 1e3, lambda m: m.compile),
        "mask": ("µs", 1e6, lambda m: median(m.masks)),
        "mask-p99": ("µs", 1e6, lambda m: quantiles(m.masks, n=100)[98]),
    }
    found = []
    for figure, (unit, scale, value) in figures.items():
        if not ours.masks and figure != "compile":
            break
        note = "" if ours.outcome == "works" else f", {ours.outcome}"
        vs = {}
        if theirs is not None:
            note += "" if theirs.outcome == "works" else f"; xgrammar {theirs.outcome}"
            if theirs.masks and ours.masks:
                vs = {"xgrammar": value(theirs) / value(ours)}
        found.append(Row(f"{figure}-{name}", scale * value(ours), unit + note, vs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default=",".join(CASES), help="which, with commas between them [all]")
    parser.add_argument("--one", nargs=3, metavar=("LIBRARY", "TOKENIZER", "CASE"), help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(vars(measure_here(*args.one))))
        return
    peer = find_spec("xgrammar") is not None
    if not peer:
        print("xgrammar is not installed: its side stays empty", file=sys.stderr)
    found: list[Row] = []
    with TemporaryDirectory() as folder:
        from quire.reference.models import resolve

        large = Path(folder) / "tokenizer.json"
        large_tokenizer(large)
        for size, file in {"4k": resolve("pocket", None) / "tokenizer.json", "150k": large}.items():
            for case in args.cases.split(","):
                ours = measure("llguidance", str(file), case)
                theirs = measure("xgrammar", str(file), case) if peer else None
                found += rows(f"{size}-{case}", ours, theirs)
    show(found, "Compiling a grammar, and the mask of a token: llguidance")
    if args.json:
        write(args.json, found, "python -m benchmarks.grammar")


if __name__ == "__main__":
    main()
