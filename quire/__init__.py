"""quire: an LLM inference engine that a person can read from end to end.

This file is the face. It names what a user imports (``from quire import LLM, SamplingParams``) and loads nothing before
it is asked for (PEP 562): ``import quire`` takes milliseconds and brings in neither torch nor transformers, so that
``quire --help``, a notebook's first cell and a worker process start at once.

``quire/reference``, ``quire/zoo`` and the like are relative links to the folders at the root of the checkout, so that
``quire.reference.x`` is ``reference/x.py`` for Python, pip, mypy and an editor alike. An installed quire holds real
files there instead.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.llm import LLM
    from quire.reference.config import EngineConfig
    from quire.reference.control.errors import CheckpointError, ConfigError, QuireError, RequestError
    from quire.reference.control.params import BeamSearchParams, PoolingParams, SamplingParams
    from quire.reference.control.structured import StructuredOutputsParams
    from quire.reference.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "PoolingParams",
    "QuireError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOME = {
    "LLM": "quire.llm",
    "EngineConfig": "quire.reference.config",
    "CheckpointError": "quire.reference.control.errors",
    "ConfigError": "quire.reference.control.errors",
    "QuireError": "quire.reference.control.errors",
    "RequestError": "quire.reference.control.errors",
    "BeamSearchParams": "quire.reference.control.params",
    "PoolingParams": "quire.reference.control.params",
    "SamplingParams": "quire.reference.control.params",
    "StructuredOutputsParams": "quire.reference.control.structured",
    "CompletionOutput": "quire.reference.outputs",
    "EmbeddingRequestOutput": "quire.reference.outputs",
    "RequestOutput": "quire.reference.outputs",
}

_here = Path(__file__).resolve().parent
if not (_here / "reference" / "__init__.py").is_file() and (_here.parent / "reference" / "__init__.py").is_file():
    # This checkout lost its links: git on Windows and some unzippers leave small text files in their place. Python
    # then looks for quire.reference beside the links' targets, in the root of the checkout, and finds the same files.
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first used, and keep the name here."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
