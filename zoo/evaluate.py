"""Exact match on held-out prompts, one row a task.

    python -m quire.zoo.evaluate                              # pocket on quire itself
    python -m quire.zoo.evaluate --engine transformers --model runs/pocket/model --json out.json

The prompts come from the held-out side of every split with fixed seeds, so the table is the same on every
machine.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from quire.report import Row, write
from quire.zoo import MODELS, model_path
from quire.zoo.chat import render
from quire.zoo.world import (
    Example,
    arithmetic,
    extract,
    facts,
    lists,
    memory,
    recall,
    refuse,
    smalltalk,
    tools,
)
from quire.zoo.world.example import NoSuchKey

MAX_TOKENS = 96
# row -> the share that the model must reach (false-refuse: must not exceed); None = no promise
GOALS: dict[str, float | None] = {
    "arithmetic-2": 0.95,
    "arithmetic-3": None,
    "copy": 0.95,
    "reverse": 0.95,
    "sort": None,
    "count": None,
    "turn-memory": 0.95,
    "recall-1k": 0.95,
    "recall-2k": 0.90,
    "pairs-8": 0.80,
    "json": 0.90,
    "tool-call": 0.90,
    "facts": 0.85,
    "refuse": 0.85,
    "false-refuse": 0.05,
}


@dataclass
class Question:
    """A conversation that ends with a user's turn, and the one right answer."""

    messages: list[dict]
    answer: str
    tools: list[dict] | None = None
    key: tuple = field(default_factory=tuple)


Answer = Callable[[list[Question]], list[str]]


def _question(example: Example) -> Question:
    return Question(example.messages[:-1], example.answer, example.tools, example.key)


def _between(rng: random.Random) -> list[dict]:
    maker = rng.choice((arithmetic.make, lists.copy, facts.make, refuse.make, smalltalk.make))
    return maker(rng, True).messages


def _recall(rng: random.Random, tokenizer: Tokenizer, low: int, high: int) -> Example:
    """One fact in filler; the whole prompt has low to high tokens."""
    while True:
        example = recall.make(rng, True, rng.randint(low, high), dense=False)
        if low <= len(tokenizer.encode(render(example.messages[:-1], None, True)).ids) <= high:
            return example


def _tool_calls(count: int) -> list[Question]:
    """Ten requests to each set of tools, because a batch of chats shares its tools."""
    rng = random.Random("tool-call")
    found: list[Question] = []
    while len(found) < count:
        box = tools.toolbox(rng)
        definitions = [tools.define(spec, rng) for spec in box]
        try:
            found += [_question(tools.make(rng, True, box, definitions)) for _ in range(10)]
        except NoSuchKey:  # a tool of so few possible calls that none is held out
            continue
    return found[:count]


def questions(row: str, count: int, tokenizer: Tokenizer) -> list[Question]:
    """The held-out prompts of one row; a fifth of the short ones stand under a system prompt."""
    rng = random.Random(row)
    makers: dict[str, Callable[[], Example]] = {
        "arithmetic-2": partial(arithmetic.make, rng, True, 2),
        "arithmetic-3": partial(arithmetic.make, rng, True, 3),
        "copy": partial(lists.copy, rng, True),
        "reverse": partial(lists.reverse, rng, True),
        "sort": partial(lists.sort, rng, True),
        "count": partial(lists.count, rng, True),
        "turn-memory": partial(memory.make, rng, True, _between),
        "recall-1k": partial(_recall, rng, tokenizer, 700, 1024),
        "recall-2k": partial(_recall, rng, tokenizer, 1500, 1950),
        "pairs-8": partial(recall.pairs, rng, True, 8, False),
        "json": partial(extract.make, rng, True),
        "facts": partial(facts.make, rng, True),
        "refuse": partial(refuse.make, rng, True),
    }
    if row == "tool-call":
        return _tool_calls(count)
    if row == "false-refuse":  # in-world prompts of every kind, half of them facts
        kinds = [facts.make] * 8 + [
            smalltalk.make,
            smalltalk.make,
            arithmetic.make,
            lists.copy,
            lists.reverse,
            lists.sort,
            lists.count,
            extract.make,
        ]
        found = [_question(rng.choice(kinds)(rng, True)) for _ in range(count)]
    else:
        found = [_question(makers[row]()) for _ in range(count)]
    if not row.startswith("recall"):
        for question in found:
            if question.messages[0]["role"] != "system" and rng.random() < 0.2:
                question.messages.insert(0, {"role": "system", "content": smalltalk.system_prompt(rng)})
    return found


def quire_engine(model: str, dtype: str) -> Answer:
    """Greedy answers from quire itself; chats with the same tools go in one batch."""
    from quire import LLM, SamplingParams

    llm = LLM(model, dtype=dtype)
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)

    def answer(asked: list[Question]) -> list[str]:
        groups: dict[str, list[int]] = {}
        for i, question in enumerate(asked):
            groups.setdefault(json.dumps(question.tools), []).append(i)
        texts = [""] * len(asked)
        for tool_text, indices in groups.items():
            more = {"tools": json.loads(tool_text)} if tool_text != "null" else {}
            outputs = llm.chat([asked[i].messages for i in indices], params, **more)
            for i, output in zip(indices, outputs, strict=True):
                texts[i] = output.outputs[0].text
        return texts

    return answer


def transformers_engine(model: str, dtype: str = "float32", batch: int = 0) -> Answer:
    """Greedy answers from Hugging Face transformers: a peer to check against, and of use while training."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(model_path(model) if model in MODELS else model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    size = batch or (200 if device == "cuda" else 16)

    def answer(asked: list[Question]) -> list[str]:
        prompts = [
            tokenizer.apply_chat_template(q.messages, tools=q.tools, add_generation_prompt=True, tokenize=False)
            for q in asked
        ]
        order = sorted(range(len(asked)), key=lambda i: len(prompts[i]))
        texts = [""] * len(asked)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            inputs = tokenizer(
                [prompts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=False
            ).to(device)
            with torch.inference_mode():
                out = lm.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    do_sample=False,
                    max_new_tokens=MAX_TOKENS,
                )
            decoded = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(part, decoded, strict=True):
                texts[i] = text
        return texts

    return answer


def score(row: str, asked: list[Question], answers: list[str]) -> float:
    if row == "false-refuse":
        return sum(a.strip() == refuse.REFUSAL for a in answers) / len(asked)
    return sum(a.strip() == q.answer for q, a in zip(asked, answers, strict=True)) / len(asked)


def table(rows: list[Row]) -> str:
    """A Markdown table for the terminal and the model card."""
    lines = ["| task | exact match | goal |", "| --- | ---: | ---: |"]
    for row in rows:
        goal = GOALS[row.name]
        sign = "≤" if row.name == "false-refuse" else "≥"
        promise = "" if goal is None else f"{sign} {100 * goal:.0f}%"
        lines.append(f"| {row.name} | {100 * row.value:.1f}% | {promise} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="a name in the zoo or a checkpoint folder")
    parser.add_argument("--engine", choices=("quire", "transformers"), default="quire")
    parser.add_argument("--dtype", default="float32", help="arithmetic: float32 or bfloat16")
    parser.add_argument("--n", type=int, default=200, help="prompts a row")
    parser.add_argument("--rows", nargs="*", default=list(GOALS), choices=list(GOALS), metavar="ROW")
    parser.add_argument("--show-wrong", type=int, default=0, help="print this many wrong answers a row")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    folder = model_path(args.model) if args.model in MODELS else Path(args.model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if args.engine == "quire":
        answer = quire_engine(args.model, args.dtype)
    else:
        answer = transformers_engine(args.model, args.dtype)
    rows = []
    for row in args.rows:
        asked = questions(row, args.n, tokenizer)
        answers = answer(asked)
        rows.append(Row(row, score(row, asked, answers), "share"))
        print(f"{row:14} {rows[-1].value:.3f}", file=sys.stderr, flush=True)
        wrong = [
            (q, a)
            for q, a in zip(asked, answers, strict=True)
            if (a.strip() == refuse.REFUSAL if row == "false-refuse" else a.strip() != q.answer)
        ]
        for question, text in wrong[: args.show_wrong]:
            asked_last = question.messages[-1]["content"][-300:]
            print(f"  ask: {asked_last!r}\n  got: {text!r}\n  not: {question.answer!r}", file=sys.stderr)
    print(table(rows))
    if args.json:
        write(args.json, rows, "python -m quire.zoo.evaluate")


if __name__ == "__main__":
    main()
