"""What a user gets back: ``RequestOutput`` and what hangs on it, with vLLM's names and meanings.

Plain dataclasses. ``output_processor`` fills them from the scheduler's events; a stream yields the same classes, with
only what is new in ``text``, ``token_ids`` and ``logprobs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from quire.reference.control import plan


class Logprob(NamedTuple):
    """One token's log-probability under the model's raw logits, its rank (1 = most likely) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def logprob_dict(entry: plan.Logprobs, decode: Callable[[list[int]], str] | None) -> dict[int, Logprob]:
    """The token at a position first, then the likeliest ones in falling order, by token id."""
    top = zip(entry.token_ids[1:], entry.logprobs[1:], range(1, len(entry.token_ids)), strict=True)
    ranked = [(entry.token_ids[0], entry.logprobs[0], entry.rank), *top]
    return {t: Logprob(p, rank, None if decode is None else decode([t])) for t, p, rank in ranked}


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to a request, in seconds of ``time.monotonic``, and how many tokens it took.

    scheduled_time         when it first had a place in a step of the engine; before that it waited
    num_cached_tokens      prompt tokens whose K/V came from the prefix cache
    num_generation_tokens  over all its completions
    num_draft_tokens       drafts that were verified for it, over all its completions
    num_accepted_tokens    of these, accepted
    finish_reasons         of each of its completions, once it has ended
    """

    arrival_time: float
    num_prompt_tokens: int
    scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's completions.

    index               which of them
    text, token_ids     what was generated; the end-of-sequence token is among the ids but not in the text
    cumulative_logprob  sum of the tokens' log-probabilities, where logprobs were asked for
    logprobs            per token, token id -> ``Logprob``, where asked for
    drafted             per token, whether it was an accepted draft of speculative decoding; empty for beams
    finish_reason       None while it runs; then "stop", "length", "abort" or "error"
    stop_reason         the stop string or stop token id behind "stop"; None for the end-of-sequence token
    error               what went wrong, with "error"
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    drafted: list[bool] = field(default_factory=list)

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its completions. ``prompt_index`` is its place among the prompts of the call it came from.

    prompt is None where token ids were given; ``num_cached_tokens`` prompt tokens came from the prefix cache. A request
    with pooling parameters has no completions, but an ``embedding``: float32 numbers, little-endian.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    prompt_index: int = 0
    embedding: bytes | None = None


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis: ``tokens`` and ``text`` include the prompt (as in vLLM), ``output_*`` leave it out."""

    tokens: list[int]
    text: str
    cum_logprob: float
    finish_reason: str | None
    output_token_ids: list[int] = field(default_factory=list)
    output_text: str = ""


@dataclass(slots=True)
class BeamSearchOutput:
    """The hypotheses of one prompt, best first."""

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class EmbeddingOutput:
    """A prompt's embedding; each number is a float32."""

    embedding: list[float]


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """One prompt with its embedding, with vLLM's names."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0
    finished: bool = True
