"""The small models that ship with quire, and the scripts that made them.

`model_path("pocket")` is a plain Hugging Face checkpoint folder; `quire.LLM("pocket")` finds it through
here.
"""

from importlib import resources
from pathlib import Path

MODELS = ("pocket", "pocket-draft")


def model_path(name: str) -> Path:
    """The folder of an embedded model. Raises KeyError for a name that is not in the zoo."""
    if name not in MODELS:
        raise KeyError(f"no model {name!r} in the zoo; there are {', '.join(MODELS)}")
    return Path(str(resources.files("quire.zoo").joinpath(name)))
