"""Who may import whom: the rules of docs/design.md, section 4, read off the syntax tree; and that the face is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import LINKED, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Folder -> what its files never import. "x" stands for x and everything in it.
NEVER = {
    "reference/": ["triton", "quire.fast", "quire.server", "quire.ui"],
    "fast/": ["quire.reference.ops", "quire.server", "quire.ui"],
    "server/": [  # only the engine's façade
        "quire.fast",
        "quire.reference.control.block_pool",
        "quire.reference.control.kv_manager",
        "quire.reference.control.plan",
        "quire.reference.control.prefix_cache",
        "quire.reference.control.scheduler",
        "quire.reference.models",
        "quire.reference.ops",
        "quire.reference.runner",
        "quire.ui",
    ],
    "ui/": ["torch", "quire.fast", "quire.llm", "quire.reference", "quire.server"],  # HTTP only
}
# Folder -> all that its files may import.
ONLY = {"reference/control/": [*sys.stdlib_module_names, "numpy", "quire.reference.control"]}
# Folder -> packages of the extra "server" that its files import, but only when they are used.
OPTIONAL = {"reference/structured/": ["llguidance"]}
DATA_PLANES = ("quire.reference.ops", "quire.fast")
BOTH_PLANES = ("quire/", "tests/")  # where the backend is chosen, and where one is compared with the other


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module (or name in a module) that the code imports, also by ``import_module("…")``; relative as "."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." if node.level else f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def violations(path: str, source: str) -> list[str]:
    """What the file at ``path`` (relative to the checkout) does against the rules."""
    found = sorted(set(imports(ast.parse(source))))
    bad = [f"{path} imports {m}: write quire.{m}" for m in found if m.partition(".")[0] in LINKED]
    bad += [f"{path} has a relative import: write quire.… in full" for m in found if m == "."]
    for folder, banned in NEVER.items():
        if path.startswith(folder):
            bad += [f"{path} imports {m}" for m in found if any(within(m, b) for b in banned)]
    for folder, allowed in ONLY.items():
        if path.startswith(folder):
            bad += [f"{path} imports {m}" for m in found if not any(within(m, a) for a in allowed)]
    if not path.startswith(BOTH_PLANES) and all(any(within(m, plane) for m in found) for plane in DATA_PLANES):
        bad.append(f"{path} imports both data planes")
    return bad


def python_files() -> list[Path]:
    """The checkout's own Python files, each once, by its real place."""
    places = [ROOT / name for name in ("quire", *LINKED, "tests", "benchmarks")]
    files = {file.resolve() for place in places if place.is_dir() for file in place.rglob("*.py")}
    return sorted(file for file in files if ROOT in file.parents and "__pycache__" not in file.parts)


def test_rules_hold() -> None:
    files = python_files()
    assert ROOT / "reference" / "control" / "plan.py" in files
    bad = [line for file in files for line in violations(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("reference/control/scheduler.py", "import torch"),
        ("reference/control/scheduler.py", "def f():\n    from torch.nn import functional"),
        ("reference/control/scheduler.py", "from quire.reference import ops"),
        ("reference/control/scheduler.py", "from quire.reference.runner import ModelRunner"),
        ("reference/ops/attention.py", "import triton.language as tl"),
        ("reference/engine.py", "from quire import fast"),
        ("reference/engine.py", "import importlib\nimportlib.import_module('quire.server')"),
        ("reference/engine.py", "from . import runner"),
        ("fast/runner.py", "from quire.reference.ops.linear import linear"),
        ("fast/runner.py", "from quire.reference import ops"),
        ("server/app.py", "from quire.reference.control.scheduler import Scheduler"),
        ("ui/app.py", "from quire.llm import LLM"),
        ("ui/app.py", "from quire import reference"),
        ("benchmarks/ops.py", "import quire.fast.ops\nimport quire.reference.ops"),
        ("quire/llm.py", "from reference.engine import Engine"),
        ("tests/test_x.py", "import zoo"),
    ],
)
def test_a_violation_is_caught(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("reference/control/philox.py", "import heapq\nimport numpy as np\nfrom collections.abc import Iterator"),
        ("reference/control/kv_manager.py", "from quire.reference.control.plan import Copy"),
        ("reference/ops/linear.py", "import torch\nfrom quire.reference.control import philox"),
        ("quire/backend.py", "import quire.fast.ops\nimport quire.reference.ops"),
        ("server/app.py", "from quire.reference.control.errors import QuireError\nimport fastapi"),
        ("zoo/make.py", "import torch\nfrom quire import LLM"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


def optional(path: str) -> list[str]:
    """Packages that the file at ``path`` may do without."""
    return [package for folder, packages in OPTIONAL.items() if path.startswith(folder) for package in packages]


def test_optional_packages_are_those_of_the_server() -> None:
    """They are declared there, and importing the modules that use them does not import them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"]["server"]}
    for folder, packages in OPTIONAL.items():
        modules = [f"quire.{folder}{file.stem}".replace("/", ".") for file in sorted((ROOT / folder).glob("[a-z]*.py"))]
        out = python(f"import sys, {', '.join(modules)}; print([p for p in {packages} if p in sys.modules])")
        assert out == "[]" and declared >= set(packages)


def test_base_dependencies_are_declared() -> None:
    """What quire/, reference/ and zoo/ import at all is in the base of pyproject.toml: a user misses no package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in project["dependencies"]}
    known = {*sys.stdlib_module_names, "quire", ".", *declared}
    missing = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in python_files()
        if file.relative_to(ROOT).parts[0] in ("quire", "reference", "zoo")
        for module in imports(ast.parse(file.read_text("utf-8")))
        if module.partition(".")[0] not in {*known, *optional(file.relative_to(ROOT).as_posix())}
    }
    assert not missing, sorted(missing)


def python(code: str) -> str:
    """Run code in a new interpreter at the root of the checkout and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout.strip()


def test_import_quire_is_light() -> None:
    """In a new process: one file of ours, and a handful of Python's own modules. That takes milliseconds anywhere."""
    code = "import sys; before = {*sys.modules}; import quire; print(*{*sys.modules} - before)"
    new = python(code).split()
    assert [name for name in new if name.partition(".")[0] not in sys.stdlib_module_names] == ["quire"]
    assert len(new) <= 12, f"import quire brought in {sorted(new)}"


def test_control_plane_runs_without_torch() -> None:
    """Not only by its own imports but by all that they bring in."""
    folder = ROOT / "reference" / "control"
    modules = [
        f"quire.reference.control.{file.stem}" for file in sorted(folder.glob("*.py")) if file.stem != "__init__"
    ]
    out = python(f"import sys; import quire; import {', '.join(modules)}; print('torch' in sys.modules)")
    assert out == "False"


def test_an_api_process_runs_without_torch() -> None:
    """With tokenizer, application and all routes: N of them in front of one engine shall be cheap."""
    code = (
        "import sys; from quire import EngineConfig; from quire.assets import load_assets;"
        "from quire.server.app import build_app; from quire.server.client import EngineClient;"
        "app = build_app(EngineClient('ipc:///nowhere', load_assets(EngineConfig())));"
        "app.state.quire.check_settings(); print('torch' in sys.modules)"
    )
    assert python(code) == "False"


def test_public_names() -> None:
    """Each name of the face is where the face says, and an unknown one is an AttributeError."""
    import quire

    assert Path(quire.__file__).parent == ROOT / "quire"
    assert set(quire._HOME) == set(quire.__all__) - {"__version__"}
    for name in quire.__all__:
        assert getattr(quire, name) is not None
        assert name in dir(quire)
    assert quire.SamplingParams is sys.modules["quire.reference.control.params"].SamplingParams
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        quire.nonsense  # noqa: B018
