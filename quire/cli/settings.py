"""The sampling parameters a command uses: the model's defaults, then the command's, then the flags."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from quire.reference.control.params import SamplingParams

if TYPE_CHECKING:
    from quire.llm import LLM

MAX_TOKENS = 256  # the library's default of 16, which is vLLM's, would cut nearly every answer short


def default_params(llm: LLM, given: dict[str, Any]) -> SamplingParams:
    """The checkpoint's default parameters with ``given`` on top, and room for an answer."""
    own = llm.get_default_sampling_params()
    values = {f.name: getattr(own, f.name) for f in fields(own)}
    if own.max_tokens == SamplingParams().max_tokens:
        values["max_tokens"] = max(MAX_TOKENS, given.get("min_tokens", 0))
    return SamplingParams(**(values | given))
