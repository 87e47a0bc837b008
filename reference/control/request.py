"""What goes into the scheduler (``Request``), what it keeps (``Sequence``) and what comes out (``Event``).

A request is one prompt. It becomes one sequence, or several siblings that share the prompt's blocks: ``n`` or
``best_of`` parallel samples (told apart by ``stream``), or the beams of a beam search. With pooling parameters the
prompt is all there is of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quire.reference.control.params import RequestParams
from quire.reference.control.plan import Logprobs

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class Request:
    """One prompt with what was asked of it. ``seed`` is resolved: never None, whoever built the request chose it.

    ``eos_token_ids`` end a sequence unless ``params.ignore_eos``; ``cache_salt`` keeps its blocks apart in the prefix
    cache from requests with another salt; lower ``priority`` runs first under the priority policy.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: RequestParams
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str | None = None


@dataclass(slots=True)
class Beam:
    """A finished hypothesis of a beam search: its output tokens, cumulative log-probability and why it ended."""

    token_ids: list[int]
    cumulative_logprob: float
    finish_reason: FinishReason


@dataclass(slots=True)
class Event:
    """News about one sequence of one request, in the order in which it happened.

    index               which of the request's ``num_sequences`` completions (its stream)
    token_ids           tokens it gained, in order; what follows a stop is already cut off
    logprobs            one entry per token gained, where the request asked for logprobs; else None
    prompt_logprobs     with the first event of stream 0, where asked: one entry per prompt position, None for the first
    num_cached_tokens   prompt tokens whose K/V came from the prefix cache at first admission
    finish_reason       None while it runs; then "stop" (a stop token, or a grammar is complete), "length", "abort" or
                        "error"
    stop_reason         the stop token id behind "stop"; None for the end-of-sequence token
    beams               with the single, last event of a beam search: its hypotheses, best first
    error               what went wrong, with "error"
    scheduled_time      when the request was first given a place in a step, in seconds of ``time.monotonic`` (one clock
                        for all processes of a machine); with the first event of stream 0
    embedding           with the single, last event of a request with pooling parameters: float32 numbers, little-endian
    num_drafted         drafts that were verified to bring this, and of these, num_accepted
    """

    request_id: str
    index: int
    token_ids: list[int]
    logprobs: list[Logprobs] | None = None
    prompt_logprobs: list[Logprobs | None] | None = None
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    beams: list[Beam] | None = None
    error: str | None = None
    scheduled_time: float | None = None
    embedding: bytes | None = None
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(slots=True)
class SchedulerStats:
    """A snapshot for logs, metrics and the summary tables; counters count since the start."""

    num_running: int = 0
    num_waiting: int = 0
    blocks_total: int = 0  # without the null block
    blocks_used: int = 0
    blocks_shared: int = 0  # block table entries saved by sharing: sum over used blocks of (holders - 1)
    slots_used: int = 0  # token slots in used blocks that hold K/V
    host_blocks_used: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of these, found
    num_preemptions: int = 0
    num_copies: int = 0  # blocks copied on write
    num_drafts: int = 0  # verifications: steps of a sequence that had drafts
    num_draft_tokens: int = 0  # drafts in all of them
    num_accepted_tokens: int = 0  # of these, accepted
    accepted_by_position: list[int] = field(default_factory=list)  # entry i: as the (i + 1)th draft of their step
    num_swapped_out: int = 0  # blocks
    num_swapped_in: int = 0
    block_size: int = 0
    steps_by_tokens: list[int] = field(default_factory=list)  # entry i: steps of up to 2**i tokens, but over 2**(i-1)
    tokens_planned: int = 0  # by all these steps
    steps_verified: int = 0  # computed once more by the reference
    steps_diverged: int = 0  # of these, found to differ

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a step with drafts brings on average: those accepted, and the target's own. 1 without any."""
        return 1 + self.num_accepted_tokens / max(self.num_drafts, 1)
