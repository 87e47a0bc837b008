"""Sequence and Group: what the scheduler remembers about a request while it is being served.

A sequence is described by lengths, so that the scheduler can plan ahead of the tokens::

    tokens     known on the host: the prompt, then what came back
    target     tokens that will exist once every launched step is back  (len(tokens) + what is in flight, at most)
    planned    positions whose K/V is computed, or will be by a launched step

``planned < target`` means work to do: a prompt chunk if the difference is large, a decode step if it is one. There is
no prefill phase and no decode phase. An embedding counts as the one token after its prompt: it is due when that is.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from enum import Enum, auto

from quire.reference.control.kv_manager import BlockTable
from quire.reference.control.params import PoolingParams, SamplingParams
from quire.reference.control.plan import Logprobs
from quire.reference.control.request import Beam, Event, Request
from quire.reference.control.speculation import Acceptance

Key = tuple[int, int, int]  # order of service: (priority, arrival, index)


class Status(Enum):
    """Waiting: has no row (never had, or was preempted). Running: has a row. Finished: gone from the scheduler."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """One token sequence of a request.

    index        its stream: which of the request's siblings
    key          order of service: (priority, arrival, index); the largest is preempted first
    max_len      longest it may get, prompt included
    stop_ids     token ids that end it
    row          the runner's slot while running, else -1
    epoch        number of admissions so far; a result from an earlier epoch is stale
    in_flight    launched steps that will bring it tokens
    coming       how many tokens at most these bring: one each, and their drafts
    drafts       tokens that the proposer offers for the next step; the runner has them too. Of a sequence that runs
                 ahead only their number means something
    offered      how many drafts there were for the latest step in flight
    runs_ahead   it is planned while drafts of its own are in flight
    acceptance   how its drafts have fared lately; None: it does not speculate
    followed     positions before this one a draft model has computed, if there is one
    blocked      may not be planned now: it waits for drafts, or for how many are right, or, as a beam, for its siblings
    candidates   of a beam that has reported: its likeliest next tokens
    choices      of a beam that goes on: (token, cumulative log-probability) for it and the children it forks
    """

    seq_id: int
    group: Group
    index: int
    params: SamplingParams | PoolingParams
    key: Key
    tokens: list[int]
    prompt_len: int
    max_len: int
    stop_ids: tuple[int, ...]
    table: BlockTable
    status: Status = Status.WAITING
    row: int = -1
    epoch: int = 0
    planned: int = 0
    target: int = 0
    in_flight: int = 0
    coming: int = 0
    drafts: Tokens[int] = ()
    offered: int = 0
    runs_ahead: bool = False
    acceptance: Acceptance | None = None
    followed: int = 0
    blocked: bool = False
    cumulative_logprob: float = 0.0
    candidates: Logprobs | None = None
    choices: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target = len(self.tokens)

    @property
    def sampling(self) -> SamplingParams:
        """The parameters of a sequence that samples: one that does not pool."""
        assert isinstance(self.params, SamplingParams)
        return self.params

    @property
    def sums(self) -> bool:
        """Whether every position's hidden state is added up, in its row. Such a sequence always starts at position 0.

        K/V from the prefix cache or from the swap space would come without the hidden states, so it uses neither.
        """
        return isinstance(self.params, PoolingParams) and self.params.pooling == "mean"

    def append(self, tokens: list[int]) -> Event:
        """Append tokens up to the first stop, and say so."""
        group, history = self.group, self.tokens
        event = Event(group.request.request_id, self.index, tokens)
        for count, token in enumerate(tokens, 1):
            history.append(token)
            if token in self.stop_ids and len(history) - self.prompt_len >= self.sampling.min_tokens:
                event.finish_reason = "stop"
                event.stop_reason = None if token in group.request.eos_token_ids else token
            elif len(history) >= self.max_len:
                event.finish_reason = "length"
            if event.finish_reason is not None:
                event.token_ids = tokens[:count]
                break
        if self.index == 0 and not group.prompt_logprobs_sent:
            group.prompt_logprobs_sent = True
            event.prompt_logprobs = group.prompt_logprobs
            event.num_cached_tokens = group.num_cached_tokens
            event.scheduled_time = group.scheduled_time
        return event


@dataclass(slots=True, eq=False)
class Group:
    """All sequences of one request, and what they share.

    arrival        number of the request, for the order of service
    max_len, params, stop_ids   what each sequence of it gets
    sequences      the live ones
    num_unforked   siblings that still have to be forked off stream 0 once its prompt is planned
    next_index     stream number for the next forked beam
    prompt_logprobs  by position, as far as known (None where unknown, and for the first token)
    completed      finished hypotheses of a beam search
    scheduled_time when it was first in a plan (set by the engine: nothing in here looks at a clock)
    """

    request: Request
    arrival: int
    max_len: int
    params: SamplingParams | PoolingParams
    stop_ids: tuple[int, ...]
    sequences: list[Sequence] = field(default_factory=list)
    num_unforked: int = 0
    next_index: int = 1
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprobs | None] | None = None
    prompt_logprobs_sent: bool = False
    completed: list[Beam] = field(default_factory=list)
    scheduled_time: float | None = None
