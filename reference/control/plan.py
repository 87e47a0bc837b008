"""The two messages between the control plane and a data plane: ``StepPlan`` down, ``StepResult`` up.

The control plane (scheduler, block pool, prefix cache) decides *what* runs and never sees a tensor. The data plane
(a ``ModelRunner``) decides *how* and never sees a request, a policy or a string. Everything they need to tell each
other is in this file.

A plan carries no token that the model sampled. The runner keeps ``tokens[row, position]`` and ``row_len[row]`` itself,
and a decode step reads its input there. So the scheduler can plan by *lengths* alone and may plan step n+1 before the
tokens of step n have reached the host (run-ahead).

A runner executes a plan in this order, on one stream or fenced by events::

    ends, starts, forks  →  swap_out  →  copies  →  swap_in  →  forward  →  sample or pool

Within one plan no copy's destination is another copy's source, and no source is freed before the plan has run.

A row that starts with ``PoolingParams`` is a prompt and nothing more: it never samples, forks or drafts. Its chunks
come in order; with pooling="mean" they cover every position from 0 on once between the row's start and its end, so that
a runner can add up hidden states as they come. The chunk that ends the prompt says ``pools``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from quire.reference.control.params import PoolingParams, SamplingParams


@dataclass(slots=True)
class SeqPlan:
    """One sequence's share of a step: compute ``n`` tokens at positions ``start .. start + n - 1``.

    row         the runner's slot for this sequence's state (tokens, block table, sampling parameters)
    seq_id      which sequence; together with ``epoch`` it tells a late result from a current one
    epoch       counts the admissions of this sequence (a preempted sequence comes back with the next epoch)
    start       first position computed; its token and those after it are already in the runner's row. With ``ahead`` an
                upper bound, until the step's result is in
    n           how many tokens are computed, drafted ones included
    n_draft     how many of the ``n`` (the last ones) are drafts to be verified
    new_blocks  block ids that follow, in the row's block table, those of the positions before ``start``; what the row
                had there was reserved for drafts that were rejected, and has been given back
    samples     whether the last position's logits are sampled (False for an unfinished prompt chunk)
    write       False: the K/V of these positions is already in the cache, only the logits are missing
                (``slot = -1``); happens with n == 1 after a fork or when the whole prompt was found in the cache
    pools       whether the row's embedding is due with this chunk (never together with ``samples``)
    propose     how many drafts at most the proposer may offer after this step, for the row's next one
    ahead       drafts of the row are in flight, so that its length is not known yet. The runner knows it when it comes
                to this step: the first position is ``row_len - 1``
    """

    row: int
    seq_id: int
    epoch: int
    start: int
    n: int
    n_draft: int
    new_blocks: list[int]
    samples: bool
    write: bool = True
    pools: bool = False
    propose: int = 0
    ahead: bool = False


@dataclass(slots=True)
class NewSeq:
    """A sequence enters ``row``: the first time, or again after a preemption (then with the tokens sampled so far).

    token_ids are all known tokens, the first ``prompt_len`` of them the prompt. ``seed`` is resolved (never None);
    ``stream`` tells the siblings of one request apart; ``stop_ids`` are the token ids that end it (end-of-sequence ids
    unless ``ignore_eos``, and ``stop_token_ids``), which ``min_tokens`` masks. The row's block table starts empty.
    """

    row: int
    seq_id: int
    token_ids: list[int]
    prompt_len: int
    params: SamplingParams | PoolingParams
    seed: int
    stream: int
    stop_ids: tuple[int, ...]


@dataclass(slots=True)
class Fork:
    """``row`` becomes a child of ``parent_row``: its first ``length`` tokens and the blocks that hold them.

    The block table of the child is the first ``ceil(length / block_size)`` entries of the parent's, shared until
    somebody writes. If ``token`` is given (a beam's choice) it is appended as token number ``length``, whose K/V is not
    computed yet. ``row == parent_row`` is a beam that continues in place: only its token is set. Everything not named
    here (prompt_len, seed, stop_ids) is inherited.
    """

    row: int
    parent_row: int
    seq_id: int
    length: int
    stream: int
    params: SamplingParams
    token: int | None = None


class Copy(NamedTuple):
    """Copy-on-write: copy block ``src`` to ``dst``; entry ``entry`` of ``row``'s block table then names ``dst``."""

    src: int
    dst: int
    row: int
    entry: int


class Swap(NamedTuple):
    """Move one block's content between device block ``device`` and host block ``host``."""

    device: int
    host: int


@dataclass(slots=True)
class StepPlan:
    """All that one step does. ``step`` numbers the plans; results carry it back."""

    step: int
    ends: list[int] = field(default_factory=list)  # rows that are free from here on
    starts: list[NewSeq] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    swap_out: list[Swap] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    swap_in: list[Swap] = field(default_factory=list)
    seqs: list[SeqPlan] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step, at most ``max_num_batched_tokens``."""
        return sum(s.n for s in self.seqs)


class Logprobs(NamedTuple):
    """Log-probabilities at one position, of the model's raw logits (before penalties and temperature).

    The first entry is the token that stands at this position; then come the asked number of most likely tokens, in
    falling order. ``rank`` is the first entry's place among all tokens, 1 = most likely.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


@dataclass(slots=True)
class StepResult:
    """What a step brought, in the order of ``plan.seqs``.

    tokens            per SeqPlan the tokens it gained: none for an unfinished prompt chunk, one for a decode,
                      1 .. n_draft + 1 with speculation: accepted drafts, then the target's own token (which is
                      missing where a grammar had no mask for it: the sequence may be at its end there)
    logprobs          index in plan.seqs -> one entry per token gained, where ``params.logprobs`` asked for them
    prompt_logprobs   index in plan.seqs -> (first position, entries for the prompt positions this chunk made known);
                      position p's entry is about token p given those before it, so position 0 never has one
    drafts            index in plan.seqs -> tokens the proposer offers for the next step (they stay in the runner too;
                      their number is known at once, reading them may wait for the device). A next step that is planned
                      ahead verifies as many as were asked for; what stands behind those offered is anything
    accepted          index in plan.seqs -> how many of its n_draft drafts were accepted, for those that had any
    pooled            index in plan.seqs -> the embedding, for those that pool: float32 numbers, little-endian
    """

    step: int
    tokens: list[list[int]]
    logprobs: dict[int, list[Logprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[int, list[Logprobs]]] = field(default_factory=dict)
    drafts: dict[int, Sequence[int]] = field(default_factory=dict)
    accepted: dict[int, int] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)


class Pending(Protocol):
    """A step that has been launched. ``wait`` blocks until its tokens are on the host."""

    def wait(self) -> StepResult: ...
