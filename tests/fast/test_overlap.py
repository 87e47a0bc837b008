"""Kernels that come in while the one before still runs (programmatic dependent launch) wait before they touch memory.

A kernel launched with ``**OVERLAP`` that forgot to would read what is not written yet, now and then, on some GPUs. So
this is read off the syntax tree.
"""

from __future__ import annotations

import ast

from tests.conftest import ROOT

# What may be loaded before: parameters of the model, which no kernel writes.
EARLY = {"_gemv": 1}


def launched_and_kernels() -> tuple[dict[str, bool], dict[str, ast.FunctionDef]]:
    """The names of the kernels that are launched -> whether with ``**OVERLAP``; and all kernels by name."""
    launched: dict[str, bool] = {}
    functions: dict[str, ast.FunctionDef] = {}
    for path in [p for folder in ("ops", "sampling", "runner") for p in (ROOT / "fast" / folder).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and "triton.jit" in " ".join(map(ast.unparse, node.decorator_list)):
                functions[node.name] = node
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                overlaps = any(k.arg is None and ast.unparse(k.value) == "OVERLAP" for k in node.keywords)
                launched[ast.unparse(node.func.value)] = overlaps
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "_launch":  # norms share a launcher
                launched[ast.unparse(node.args[0])] = True
    return {name: overlaps for name, overlaps in launched.items() if name in functions}, functions


def accesses(statements: list[ast.stmt]) -> int:
    calls = [n for s in statements for n in ast.walk(s) if isinstance(n, ast.Call)]
    return sum(ast.unparse(call.func) in ("tl.load", "tl.store", "tl.atomic_add") for call in calls)


def test_every_kernel_that_overlaps_waits_first() -> None:
    launched, functions = launched_and_kernels()
    overlapping = {name for name, overlaps in launched.items() if overlaps}
    assert {"_attend_few", "_combine", "_rms_norm", "_layer_norm", "_gemv", "_choose", "_build_inputs"} <= overlapping
    for name in sorted(overlapping):
        body = functions[name].body
        waits = [i for i, s in enumerate(body) if isinstance(s, ast.Expr) and ast.unparse(s.value) == "overlap()"]
        assert len(waits) == 1, f"{name} is launched with OVERLAP and does not call overlap() once, at its top level"
        assert accesses(body[: waits[0]]) == EARLY.get(name, 0), f"{name} touches memory before overlap()"
