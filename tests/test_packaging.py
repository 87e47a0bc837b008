"""What a user installs is what the checkout holds: real files instead of links, weights included.

Builds the sdist, the wheel from the sdist, installs the wheel in an empty folder and compares. No network: the build
backend is the setuptools of this environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import LINKED, ROOT, tracked

SKIP = shutil.ignore_patterns("__pycache__", "*.egg-info")


def call(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_checkout(to: Path) -> Path:
    """The part of the checkout that packages are made of, links kept as links."""
    to.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    for name in ("quire", *LINKED):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=SKIP)
    return to


def shipped() -> dict[str, Path]:
    """Every file that an installed quire must hold: its path there -> the file of the checkout.

    That is each tracked file of the package and of the folders it links to: modules, weights, tokenizers, templates.
    """
    places = {file.relative_to(ROOT).as_posix(): file for file in tracked("quire", *LINKED)}
    return {name if name.startswith("quire/") else f"quire/{name}": file for name, file in places.items()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with quire installed from a wheel that was built from an sdist."""
    tmp = tmp_path_factory.mktemp("packaging")
    source = copy_checkout(tmp / "source")
    build = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check")
    call(*build, "--sdist", "--outdir", str(tmp / "dist"), cwd=source)
    (sdist,) = (tmp / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        links = [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
        assert not links, f"links in the sdist: {links}"
        archive.extractall(tmp / "sdist")
    (unpacked,) = (tmp / "sdist").iterdir()
    call(*build, "--wheel", "--outdir", str(tmp / "dist"), cwd=unpacked)
    (wheel,) = (tmp / "dist").glob("*.whl")
    site = tmp / "site"
    call(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=tmp
    )  # fmt: skip
    return site


@pytest.mark.slow
def test_installed_files_are_the_checkouts(installed: Path) -> None:
    expected = shipped()
    assert "quire/reference/control/plan.py" in expected
    for name, file in expected.items():
        assert (installed / name).is_file(), f"{name} is not in the wheel: see package-data in pyproject.toml"
        assert (installed / name).read_bytes() == file.read_bytes(), f"{name} differs from the checkout's"
    assert not [path for path in installed.rglob("*") if path.is_symlink()]
    assert not (installed / "reference").exists(), "the wheel brings a top-level package named reference"


@pytest.mark.slow
def test_installed_quire_runs_from_there(installed: Path) -> None:
    """Imported in a new process, away from the checkout; every module of the control plane comes from the wheel."""
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import quire, quire.reference.control.plan as plan, quire.reference.config\n"
        "from importlib.metadata import distribution\n"
        "print(quire.__file__, plan.__file__, quire.__version__, quire.SamplingParams(n=2).n, sep='\\n')\n"
        "print(distribution('quire').locate_file(''))\n"
    )
    face, plan, version, n, where = call(sys.executable, "-c", code, cwd=installed.parent).split("\n")[:5]
    assert Path(face) == installed / "quire" / "__init__.py"
    assert Path(plan) == installed / "quire" / "reference" / "control" / "plan.py"
    assert Path(where) == installed
    assert (version, n) == ("0.1.0", "2")


@pytest.mark.parametrize("lost", ["text files", "nothing"])
def test_checkout_without_links_still_runs(tmp_path: Path, lost: str) -> None:
    """git on Windows leaves text files in place of the links, some unzippers nothing: imports find the folders."""
    root = copy_checkout(tmp_path / "checkout")
    for name in LINKED:
        link = root / "quire" / name
        if link.is_symlink():
            link.unlink()
            if lost == "text files":
                link.write_text(f"../{name}")
    code = (
        "import sys, quire, quire.reference.control.plan as plan, quire.zoo\n"
        "print(plan.__file__, plan.__name__, quire.EngineConfig().block_size, 'reference' in sys.modules, sep='\\n')\n"
    )
    file, name, block_size, bare = call(sys.executable, "-c", code, cwd=root).split("\n")[:4]
    assert Path(file) == root / "reference" / "control" / "plan.py"
    assert (name, block_size, bare) == ("quire.reference.control.plan", "16", "False")
