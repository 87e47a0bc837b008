"""Writes docs/guides/troubleshooting.md: symptoms by hand, and every error message of quire, collected from the code.

``python docs/generate_errors.py`` reads the calls that make errors (field, value, problem, remedy) out of the source
with ``ast``. What stands in a message only when it happens is "…" on the page. A message that cannot be read this way
fails here, so that none is missing; ``tests/test_docs.py`` keeps the page in step with the code.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "troubleshooting.md"
FOLDERS = ("quire", "reference", "server", "ui")  # fast/ has no errors of its own: what it is given has been checked
CLASSES = ("ConfigError", "CheckpointError", "RequestError", "ApiError", "ServerError")
MANY = 3  # fields of one message that are all named

TEXT = """\
# Troubleshooting

<!-- Written by docs/generate_errors.py: symptoms by hand, messages from the code. -->

Look for the message with the search above: every error of quire is on this page, and most say `field=value: problem.
remedy`. What changes from case to case is "…" here; each leads to the place in the code that says it.

## By symptom

**The engine does not start: "no … KV blocks", "do not fit".** Memory. The message ends with a ledger of where it goes,
and with settings that would fit, each tried by the same arithmetic. [Sizing memory](memory.md).

**`pip install` brings gigabytes.** On Linux torch's default build carries CUDA. For a CPU, take the CPU build first:
`PIP_ARGS` of `make` hands pip the address of the wheels.

**The first start takes long, or the first request.** numba compiles the CPU's loops when an engine first starts on a
machine (a log line says so), Triton compiles the GPU's kernels when they are first used; both keep them (`__pycache__`,
`~/.triton/cache`). CUDA graphs are captured when a batch size comes up for the second time.

**Streams stutter.** A step with somebody's long prompt takes long, and everybody waits for it: lower
`max_num_batched_tokens`. [Tuning](tuning.md).

**Many preemptions, `quire:num_preemptions_total` climbs.** More sequences run than fit: lower `max_num_seqs`, or give
the cache more memory. Texts stay as they were.

**No prefix hits.** The beginnings differ early (a date, an id in the system prompt), are shorter than a block
(`block_size` tokens), have different `cache_salt`s, or ask for `prompt_logprobs`, which needs every position computed.

**The same request gives another text.** Without `seed` each request draws its own numbers, from the engine's seed and
its place in the order of arrival. With a seed only floating-point ties remain: `batch_invariant=True` removes these.

**The answer stops early, `finish_reason` is "length".** `max_tokens` is 16 unless it is given, as in vLLM and OpenAI's
completions; the server's chat takes what the context leaves.

**429, 503, 504.** Too many requests at once (`--max-concurrent-requests`), the engine starts, drains or is lost, or
`--request-timeout` is over. All but the last come with `Retry-After`.

**`quire: …` and exit status 2.** A setting is wrong; the line says which, and what would do.

**The page of the playground stays empty.** It asks the server at the address given to `quire ui`; with an API key the
page asks for it. `GET /trace` needs `--enable-trace`.

**A difference reported by `--verify`.** Keep the file it names and [replay it](../verify.md#how-to-run-it-again).

## Every message

{sections}"""

TITLES = {
    "ConfigError": ("The engine or the server does not start", "`ConfigError`; exit status 2 on the command line."),
    "CheckpointError": ("The model cannot be loaded", "`CheckpointError`."),
    "RequestError": (
        "A request is refused",
        "`RequestError` in Python; status 400 over HTTP, with `param` and `code`. Other requests go on.",
    ),
    "ApiError": (
        "The server answers with an error",
        "In OpenAI's form, by status; [the codes](../api.md#errors) are listed with the HTTP API.",
    ),
    "ServerError": ("The playground cannot reach its server", "Said on the page."),
}
# What is made up elsewhere and only passes through the place that raises it: the function that makes it, or in words.
MADE_BY = {"reference/memory.py": "_problem"}
GRAMMAR = "the JSON schema, regular expression or grammar is not usable: …"  # what its compiler says


class Message(NamedTuple):
    kind: str
    field: str
    problem: str
    remedy: str
    file: str


class Scope(NamedTuple):
    """Where an expression stands: the file, the function in it, and the line of the call."""

    tree: ast.Module
    function: ast.AST
    line: int


def messages() -> list[Message]:
    """Every message that the code can make."""
    found = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            name = path.relative_to(ROOT).as_posix()
            found |= set(_in_file(name, ast.parse(path.read_text("utf-8"))))
    return sorted(found, key=lambda m: (m.kind, m.field.startswith("`…"), m.field.strip("`…"), *m))


def _in_file(name: str, tree: ast.Module) -> Iterator[Message]:
    for function, call in _calls(tree, tree):
        scope = Scope(tree, function, call.lineno)
        callee = getattr(call.func, "id", "")
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        if callee in CLASSES and any(isinstance(value, ast.Starred) for value in values):
            assert name == "reference/structured/validator.py", name
            yield Message("RequestError", "`structured_outputs.…`", GRAMMAR, "Correct or simplify it", name)
        elif callee == "_error":  # a file's own shorthand
            yield from _message("ConfigError", values, scope, name, prefix="speculative_config.")
        elif callee in CLASSES[:3]:
            yield from _message(callee, values, scope, name)
        elif callee == "ApiError":
            for text in _texts(values[1], scope):
                if text.strip("…"):
                    yield Message("ApiError", " or ".join(_texts(values[0], scope)), text, "", name)
        elif callee == "ServerError":
            for text in _texts(values[0], scope):
                yield Message("ServerError", "", text, "", name)


def _message(kind: str, values: list[ast.expr], scope: Scope, name: str, prefix: str = "") -> Iterator[Message]:
    fields, _, problems, remedies = values
    passed_on = [value.attr for value in (problems, remedies) if isinstance(value, ast.Attribute)]
    if passed_on or (isinstance(problems, ast.Name) and problems.id in _parameters(scope.function)):
        return  # an error taken apart and made again elsewhere, or a shorthand's own body
    named = [f"`{prefix}{text}`" for text in _texts(fields, scope)]
    field = " or ".join(named) if len(named) <= MANY else f"{', '.join(named[:MANY])} and others"
    texts = _texts(problems, scope)
    if texts == ["…"]:
        texts = _returned(MADE_BY[name], scope.tree)
    for problem in texts:
        remedy = _texts(remedies, scope)[0]
        yield Message(kind, field, problem, remedy if remedy.strip("… \n") else "", name)


def _calls(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.AST, ast.Call]]:
    """All calls, each with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        inner = child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        yield from _calls(child, inner)


def _parameters(function: ast.AST) -> list[str]:
    return [a.arg for a in function.args.args] if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) else []


def _texts(node: ast.expr, scope: Scope) -> list[str]:
    """What an expression can say, with "…" for what is known only when it happens."""
    match node:
        case ast.Constant(value):
            return [str(value)]
        case ast.JoinedStr(values):
            return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in values)]
        case ast.IfExp(_, body, orelse):
            return _texts(body, scope) + _texts(orelse, scope)
        case ast.BinOp(left, ast.Add(), right):
            ends = _texts(right, scope)
            return [a + b for a in _texts(left, scope) for b in ends]
        case ast.BoolOp(ast.Or(), values):
            return [text for value in values for text in _texts(value, scope)]
        case ast.Subscript(ast.Dict(_, values), _):
            return [text for value in values for text in _texts(value, scope)]
        case ast.Name(name):
            found = [text for value in _assigned(name, scope) for text in _texts(value, scope)]
            return list(dict.fromkeys(found)) or ["…"]
        case _:
            return ["…"]


def _assigned(name: str, scope: Scope) -> list[ast.expr]:
    """What is assigned to a name: right before the call, else anywhere in its function, else in the file."""
    nearest: ast.Assign | None = None
    anywhere: list[ast.expr] = []
    for node in ast.walk(scope.function):
        if isinstance(node, ast.Assign) and _names(node, name):
            anywhere.append(node.value)
        elif isinstance(node, ast.For):
            anywhere += _looped(name, node.target, node.iter)
        for statements in (getattr(node, part, []) for part in ("body", "orelse")):
            before: ast.Assign | None = None
            for statement in statements if isinstance(statements, list) else ():
                if statement.lineno <= scope.line <= statement.end_lineno:
                    nearest = before or nearest
                if isinstance(statement, ast.Assign) and _names(statement, name):
                    before = statement
    if nearest is not None:
        return [nearest.value]
    return anywhere or [node.value for node in scope.tree.body if isinstance(node, ast.Assign) and _names(node, name)]


def _names(assign: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in assign.targets)


def _returned(name: str, tree: ast.Module) -> list[str]:
    """What a function of the file can return, but for None."""
    [made_by] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    returns = [node for node in ast.walk(made_by) if isinstance(node, ast.Return) and node.value is not None]
    texts = [text for node in returns for text in _texts(node.value, Scope(tree, made_by, node.lineno))]
    return [text for text in texts if text != "None"]


def _looped(name: str, target: ast.expr, items: ast.expr) -> list[ast.expr]:
    """The values that a loop over written-out tuples gives to a name."""
    if isinstance(items, ast.Tuple):
        if isinstance(target, ast.Name) and target.id == name:
            return list(items.elts)
        if isinstance(target, ast.Tuple):
            places = [i for i, t in enumerate(target.elts) if isinstance(t, ast.Name) and t.id == name]
            return [item.elts[i] for i in places for item in items.elts if isinstance(item, ast.Tuple)]
    return []


def page() -> str:
    """The whole page."""
    found = messages()
    sections = []
    for kind, (title, about) in TITLES.items():
        first, with_remedy = {"ApiError": ("status", False), "ServerError": ("", False)}.get(kind, ("field", True))
        rows = [[first, "problem", "remedy"], ["---"] * 3]
        for message in (m for m in found if m.kind == kind):
            problem = message.problem.replace("[", "\\[").replace("]", "\\]")
            rows.append([message.field, f"[{problem}](../../{message.file})", message.remedy])
        rows = [row if with_remedy else row[:2] for row in rows]
        lines = [
            " | ".join(" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in row) for row in rows
        ]
        sections.append("\n".join([f"### {title}", "", about, "", *(f"| {line} |" for line in lines), ""]))
    return TEXT.format(sections="\n".join(sections))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
