"""What every test shares: one thread, no network, hypothesis profiles, and one name for every module.

``pytest --thorough`` runs the property tests with many random examples; without it they are the same few hundred
examples in every run, so that a failure is never a matter of luck. tests/test_same_examples.py holds us to it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

pytest.register_assert_rewrite("tests.runner_suite")

if TYPE_CHECKING:
    from tests.server.conftest import LiveServer

# Before anything imports torch, and inherited by every process that a test starts. One thread: several test processes
# share few cores, and the number of threads may change the last bits of a sum.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else litellm asks the network for prices
}.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("reference", "fast", "server", "ui", "zoo")  # folders that are imported as quire.NAME only

_quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]  # loaded machines are slow; that is no finding
settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, print_blob=True, suppress_health_check=_quiet
)
settings.register_profile(
    "thorough",
    derandomize=False,
    max_examples=2000,
    stateful_step_count=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=_quiet,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="property tests with many random examples (minutes to hours)"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its option
def pytest_configure(config: pytest.Config) -> None:
    """Load the profile before any test module is imported: ``settings()`` in a test then starts from it."""
    thorough = config.getoption("--thorough")
    settings.load_profile("thorough" if thorough else "ci")
    if not thorough:
        # Hypothesis mixes in numbers and words from the sources of whatever modules of ours happen to be imported, even
        # with derandomize: examples would depend on which tests the same process ran before. It has no setting for it.
        providers._get_local_constants = lambda: providers._local_constants  # none: nobody has looked yet
    if thorough and config.option.timeout is None:
        config.option.timeout = 0  # many examples take their time


@pytest.fixture(scope="session", autouse=True)
def one_name_per_module() -> Iterator[None]:
    """Fail if anything imported ``reference`` instead of ``quire.reference``: two copies of every class would exist."""
    yield
    bare = [
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in LINKED and _inside_checkout(getattr(module, "__file__", None))
    ]
    assert not bare, f"imported by their bare names: {bare}; write quire.…"


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """What a test draws from a global generator does not depend on the tests before it."""
    random.seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)
    if "torch" in sys.modules:  # where it is not imported yet, its generator is as it begins
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server on the embedded model with few, small blocks, so that requests meet, share and wait."""
    from quire.reference.config import EngineConfig
    from tests.server.conftest import serve

    with serve(EngineConfig(num_blocks=400, max_num_seqs=32, max_num_batched_tokens=256)) as live:
        yield live


def tracked(*folders: str) -> list[Path]:
    """Tracked files (of these folders) that exist, links left out; skips the test where there is no git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--", *folders]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    return [file for file in files if file.is_file() and not file.is_symlink()]


def _inside_checkout(file: str | None) -> bool:
    return file is not None and ROOT in Path(file).resolve().parents
