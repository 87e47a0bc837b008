"""The sampling fields that every generating endpoint shares: OpenAI's, and vLLM's extra ones with its names.

Ranges are checked by ``SamplingParams`` itself; here are names, types and how they become parameters. What a client
does not give is as the checkpoint's generation_config.json says, else OpenAI's default.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from quire.reference.control.errors import RequestError
from quire.reference.control.params import BeamSearchParams, SamplingParams
from quire.reference.control.structured import StructuredOutputsParams
from quire.server.errors import named
from quire.server.protocol.base import RequestModel, accepted

# Passed on to SamplingParams under the same name.
SAME_NAME = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "stop", "stop_token_ids", "bad_words", "allowed_token_ids", "ignore_eos", "min_tokens", "prompt_logprobs",
    "include_stop_str_in_output", "skip_special_tokens", "speculative",
)  # fmt: skip
NOT_FOR_BEAMS = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop",
    "bad_words", "allowed_token_ids", "min_tokens", "prompt_logprobs", "logit_bias", "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip
GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}


class SamplingFields(RequestModel):
    """Fields of /v1/completions and /v1/chat/completions that say how tokens are chosen."""

    n: int | None = Field(None, description="completions per prompt")
    temperature: float | None = Field(None, description="0 = greedy")
    top_p: float | None = Field(None, description="nucleus sampling")
    presence_penalty: float | None = Field(None, description="-2 to 2")
    frequency_penalty: float | None = Field(None, description="-2 to 2")
    seed: int | None = Field(None, description="the same seed gives the same text, whatever else the server does")
    stop: str | list[str] | None = Field(None, description="strings that end the text, any number of them")
    logit_bias: dict[str, float] | None = Field(None, description="token id -> -100 to 100")
    user: Annotated[str | None, accepted("there are no accounts to attribute requests to")] = None
    # vLLM's
    top_k: int | None = Field(None, description="keep the k likeliest tokens; 0 or -1 = all")
    min_p: float | None = Field(None, description="keep tokens at least this times as likely as the likeliest")
    repetition_penalty: float | None = Field(None, description="1 = none")
    stop_token_ids: list[int] | None = Field(None, description="token ids that end the text")
    bad_words: list[str] | None = Field(None, description="strings that may not be produced")
    allowed_token_ids: list[int] | None = Field(None, description="only these may be sampled")
    ignore_eos: bool | None = Field(None, description="go on past the end-of-sequence token")
    min_tokens: int | None = Field(None, description="no end before so many tokens")
    include_stop_str_in_output: bool | None = Field(None, description="keep the stop string in the text")
    skip_special_tokens: bool | None = Field(None, description="leave special tokens out of the text; default true")
    prompt_logprobs: int | None = Field(None, description="log-probabilities of the prompt's tokens")
    use_beam_search: bool | None = Field(None, description="the n likeliest completions, by beam search")
    length_penalty: float | None = Field(None, description="of beam search")
    structured_outputs: dict[str, Any] | None = Field(
        None, description="one of json, regex, choice, grammar, json_object: the form of the text"
    )
    guided_json: dict[str, Any] | str | None = Field(None, description="older name of structured_outputs.json")
    guided_regex: str | None = Field(None, description="older name of structured_outputs.regex")
    guided_choice: list[str] | None = Field(None, description="older name of structured_outputs.choice")
    guided_grammar: str | None = Field(None, description="older name of structured_outputs.grammar")
    priority: int | None = Field(None, description="lower runs first, with scheduling_policy=priority")
    cache_salt: str | None = Field(None, min_length=1, description="keeps its blocks apart in the prefix cache")
    speculative: bool | None = Field(None, description="false: without speculative decoding; the text is the same")
    return_token_ids: bool | None = Field(None, description="add prompt_token_ids and token_ids to the response")

    def engine_params(
        self, defaults: dict[str, Any], *, max_tokens: int | None, logprobs: int | None, **fixed: Any
    ) -> SamplingParams | BeamSearchParams:
        """The engine's parameters. ``defaults`` are the checkpoint's; ``fixed`` override what the client says."""
        if self.use_beam_search:
            return self._beam_params(max_tokens, logprobs)
        if self.length_penalty is not None:
            raise RequestError(
                "length_penalty", self.length_penalty, "belongs to beam search", "Set use_beam_search or leave it out"
            )
        given = {name: getattr(self, name) for name in SAME_NAME if getattr(self, name) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {_token_id(key): value for key, value in self.logit_bias.items()}
        structured = self.structured()
        if structured is not None:
            given["structured_outputs"] = structured
        return SamplingParams(**{**defaults, **given, "max_tokens": max_tokens, "logprobs": logprobs, **fixed})

    def structured(self) -> StructuredOutputsParams | None:
        """The form that the text must have, by whichever name it was asked for."""
        asked: list[dict[str, Any]] = [] if self.structured_outputs is None else [self.structured_outputs]
        asked += [{new: getattr(self, old)} for old, new in GUIDED.items() if getattr(self, old) is not None]
        if len(asked) > 1:
            raise RequestError(
                "structured_outputs", asked, "more than one form of the text is asked for", "Give one of them"
            )
        if not asked:
            return None
        unknown = {name: f"structured_outputs.{name}" for name in asked[0]}  # what is known is called so already
        with named({**unknown, **self.structured_names()}):
            return StructuredOutputsParams(**asked[0])

    def structured_names(self) -> dict[str, str]:
        """For ``named``: the older names, where the client used one."""
        return {f"structured_outputs.{new}": old for old, new in GUIDED.items() if getattr(self, old) is not None}

    def _beam_params(self, max_tokens: int | None, logprobs: int | None) -> BeamSearchParams:
        for name in NOT_FOR_BEAMS:
            if getattr(self, name):
                raise RequestError(
                    name, getattr(self, name), "has no effect on beam search", "Leave it or use_beam_search out"
                )
        if self.temperature:
            raise RequestError("temperature", self.temperature, "beam search does not sample", "Leave it out or give 0")
        if logprobs is not None:
            raise RequestError("logprobs", logprobs, "beam search reports none", "Leave it or use_beam_search out")
        if max_tokens is None:
            raise RequestError("max_tokens", None, "beam search needs a limit", "Give max_tokens")
        return BeamSearchParams(
            beam_width=1 if self.n is None else self.n,
            max_tokens=max_tokens,
            ignore_eos=bool(self.ignore_eos),
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            stop_token_ids=self.stop_token_ids,
            skip_special_tokens=self.skip_special_tokens is not False,
        )


def _token_id(key: str) -> int:
    """A token id as JSON's objects have it, which is text."""
    if not key.isascii() or not key.isdecimal() or len(key) > 9:
        raise RequestError("logit_bias", key, "not a token id", "Give token ids as keys, such as '42'")
    return int(key)
