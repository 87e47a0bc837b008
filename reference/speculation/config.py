"""``SpeculativeConfig``: the engine argument ``speculative_config``, with vLLM's names. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from os import PathLike, fspath
from typing import Any, Literal, get_args

from quire.reference.control.checks import known_fields_only
from quire.reference.control.errors import ConfigError

Method = Literal["ngram", "suffix", "draft_model"]
Verification = Literal["shared_noise", "rejection"]
MOST = 32  # drafts per step: more are never all accepted, and each takes a place in the step


@known_fields_only(ConfigError, "field of speculative_config")
@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """How drafts come about and what becomes of them. Names are vLLM's where it has them.

    method                  "ngram": from the request's own tokens; "suffix": from recent outputs too; "draft_model".
                            None: "draft_model" if there is a model, else "ngram"
    model                   of "draft_model": zoo name, local folder or hub name; it must have the target's vocabulary
    num_speculative_tokens  drafts per step at most
    prompt_lookup_min       of "ngram" and "suffix": tokens that must match at least
    prompt_lookup_max       of the same: tokens that are compared at most
    verification            "shared_noise": the text is the same as without speculation; "rejection": textbook rejection
                            sampling (Leviathan et al. 2022), which keeps the distribution but not the text
    adaptive                let the number of drafts follow acceptance and batch size, down to none
    """

    method: Method | None = None
    model: str | None = None
    num_speculative_tokens: int = 5
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 8
    verification: Verification = "shared_noise"
    adaptive: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.model, PathLike):
            object.__setattr__(self, "model", fspath(self.model))
        if self.method is None:
            object.__setattr__(self, "method", "ngram" if self.model is None else "draft_model")
        for name, choices in (("method", get_args(Method)), ("verification", get_args(Verification))):
            if getattr(self, name) not in choices:
                raise _error(name, getattr(self, name), "unknown choice", f"Choose one of {', '.join(choices)}")
        for name, most in (("num_speculative_tokens", MOST), ("prompt_lookup_min", 64), ("prompt_lookup_max", 64)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise _error(name, value, "not an allowed integer", f"Give an integer from 1 to {most}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise _error(
                "prompt_lookup_min", self.prompt_lookup_min, f"more than prompt_lookup_max={self.prompt_lookup_max}",
                "Lower it, or raise the other",
            )  # fmt: skip
        if not isinstance(self.adaptive, bool):
            raise _error("adaptive", self.adaptive, "neither True nor False", "Give one of the two")
        if self.method == "draft_model" and (not isinstance(self.model, str) or not self.model):
            raise _error("model", self.model, "no draft model", 'Name one, such as "pocket-draft", or use "ngram"')
        for field in fields(self):
            if self.method == "draft_model" and "lookup" in field.name and getattr(self, field.name) != field.default:
                raise _error(field.name, getattr(self, field.name), "has no meaning for 'draft_model'", "Leave it out")
        if self.method != "draft_model" and self.model is not None:
            raise _error("model", self.model, f"has no meaning for {self.method!r}", 'Use method="draft_model"')


def _error(name: str, value: Any, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"speculative_config.{name}", value, problem, remedy)


def speculative_config(given: Any, model: str | None, count: int | None) -> SpeculativeConfig | None:
    """One ``SpeculativeConfig`` of the new spelling (a mapping, or one already made) and the two older arguments."""
    if isinstance(given, SpeculativeConfig | None) and model is None and count is None:
        return given
    if isinstance(given, SpeculativeConfig) or not isinstance(given, dict | None):
        both = "the older speculative_model or num_speculative_tokens is given too"
        problem = both if isinstance(given, SpeculativeConfig) else "not a mapping"
        raise ConfigError("speculative_config", given, problem, 'Give a dict such as {"method": "ngram"}')
    merged: dict[str, Any] = dict(given or {})
    if count is not None and given is None and model is None:
        raise ConfigError(
            "num_speculative_tokens", count, "no proposer is named", 'Give speculative_config={"method": "ngram"} too'
        )
    for older, name, value in (
        ("speculative_model", "model", model),
        ("num_speculative_tokens", "num_speculative_tokens", count),
    ):
        if value is None:
            continue
        if name in merged:
            raise ConfigError(older, value, f"speculative_config has {name!r} as well", "Give one of the two")
        merged[name] = value
    if merged.get("model") in ("[ngram]", "ngram"):  # vLLM's older spelling of the method
        merged |= {"method": "ngram", "model": None}
    return SpeculativeConfig(**merged)
