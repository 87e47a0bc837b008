"""How many drafts to ask for: a fixed number, or what each sequence's recent luck and the batch make worth their cost.

A draft is one more token in the next verification. It costs its share of that step, and what the proposer takes for it;
it brings a token if it and all drafts before it agree with the target. Let ``a`` be the chance that one more draft
agrees, B the sequences in a step, and a step of T tokens take time in proportion to ``free_tokens`` + T (on a GPU the
weights are read for the first token, and hundreds more come along for little; on a CPU it is a handful). Then k drafts
per sequence bring

    1 + a + a² + … + aᵏ  tokens,  at  1 + k · (B / (free_tokens + B) + draft_cost)  times the cost of a plain step

and the best k is the one with the greatest quotient: 0 where that is no tenth more than without. ``a`` is counted per
sequence, older verifications fading away; a new sequence begins with what the engine has seen lately. At k = 0 nothing
would ever be learned, so one draft is tried now and then, after pauses that double while it does not help; not where
even drafts that always agree would bring no quarter more.

A draft model is dearer in two ways. A pass costs hardly less for one sequence than for all, so the engine's luck
decides first whether anybody drafts at all. And it does not run along with the target: a sequence for which it begins
late, or again, is ``behind`` by all that came meanwhile. Computing that takes the time of ``draft_cost`` · ``behind``
tokens, once; each token still to come then saves ``1 - 1 / quotient`` of its share of a plain step, which is
(free_tokens + B) / B. How many those are nobody knows. The guess is as many as the sequence has brought so far, and a
few at least.

Nothing in here can change a text: only how many of its tokens come in one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

from quire.reference.control.params import SamplingParams

WORTH = 1.1  # tokens per cost from which drafts are asked for; a plain step has 1
WORTH_TRYING = 1.25  # what drafts that always agree must bring before one is tried at k = 0
AT_LEAST = 16  # tokens that a sequence is expected to bring yet, however short it is
FADE = 0.9  # weight of a sequence's past verifications against the latest one
SLOW_FADE = 0.98  # the same for the engine as a whole
PRIOR = 1.5  # a new sequence starts as if it had tried so many drafts, with the engine's luck
SHORTEST_PAUSE, LONGEST_PAUSE = 8, 64  # plain steps before an attempt at k = 0


@dataclass(frozen=True, kw_only=True)
class DraftPolicy:
    """What the control plane must know of speculation.

    most          drafts per step at most
    adaptive      follow acceptance and batch size; False: always ask for ``most``
    free_tokens   tokens that cost as much as the part of a step that does not depend on their number
    draft_cost    of one drafted token, as a share of a plain step: next to 0 for lookups
    lookahead     the proposer writes K/V of its own where the drafts will stand, so their blocks are needed before
    ahead         drafts are made, and verified, without the host: plan on while they are in flight
    """

    most: int
    adaptive: bool = True
    free_tokens: float = 8.0
    draft_cost: float = 0.0
    lookahead: bool = False
    ahead: bool = False


def runs_ahead(params: SamplingParams) -> bool:
    """Whether verifying such a sequence's drafts needs nothing that the host would have to know their tokens for."""
    return params.structured_outputs is None and not params.min_tokens and not params.bad_words_token_ids


@dataclass(slots=True)
class Acceptance:
    """How drafts have fared: counts in which older verifications fade, and the state of the pauses at k = 0."""

    agreed: float
    tried: float
    pause: int = SHORTEST_PAUSE
    rest: int = SHORTEST_PAUSE

    @property
    def rate(self) -> float:
        """The chance that one more draft agrees, given that those before it did."""
        return self.agreed / self.tried

    def count(self, drafted: int, accepted: int, fade: float) -> None:
        """A verification: up to the first that disagrees, each draft was an attempt."""
        self.agreed = fade * self.agreed + accepted
        self.tried = fade * self.tried + min(accepted + 1, drafted)


def best_length(rate: float, batch: int, policy: DraftPolicy) -> tuple[int, float]:
    """The number of drafts that brings most tokens for their cost, and how many; (0, 1.0) if that is not worth it."""
    price = batch / (policy.free_tokens + batch) + policy.draft_cost
    best, best_gain, tokens, chance = 0, WORTH, 1.0, 1.0
    for k in range(1, policy.most + 1):
        chance *= rate
        tokens += chance
        gain = tokens / (1 + k * price)
        if gain > best_gain:
            best, best_gain = k, gain
    return best, best_gain if best else 1.0


def tokens_to_come(brought: int, room: int) -> int:
    """A guess: as many as there were so far, and a few at least; not more than there is ``room`` for."""
    return min(max(brought, AT_LEAST), room)


class Speculation:
    """The controller of one scheduler. ``overall`` is the luck of all its sequences together."""

    def __init__(self, policy: DraftPolicy) -> None:
        self.policy = policy
        self.overall = Acceptance(agreed=4.0, tried=5.0)
        # Every sequence of a step asks, and mostly the same.
        self._best = lru_cache(maxsize=1024)(partial(best_length, policy=policy))

    def new(self) -> Acceptance:
        """For a sequence that starts."""
        return Acceptance(PRIOR * self.overall.rate, PRIOR)

    def length(self, acceptance: Acceptance, batch: int, behind: int = 0, to_come: int = AT_LEAST) -> int:
        """Drafts to ask for, for the next step of a sequence among ``batch``. Asked once per step.

        behind    tokens that a draft model has to compute before it can draft for the sequence
        to_come   tokens that it is expected to bring yet
        """
        if not self.policy.adaptive:
            return self.policy.most
        if self.policy.lookahead:  # a pass of a draft model costs hardly less for one sequence than for all
            if not self._best(self.overall.rate, batch)[0]:
                return self._attempt(self.overall, batch, batch, behind, to_come)
            self.overall.pause = self.overall.rest = SHORTEST_PAUSE
        length, gain = self._best(acceptance.rate, batch)
        if not length:
            return self._attempt(acceptance, batch, 1, behind, to_come)
        acceptance.pause = acceptance.rest = SHORTEST_PAUSE
        return length if self._pays_back(gain, batch, behind, to_come) else 0

    def _pays_back(self, gain: float, batch: int, behind: int, to_come: int) -> bool:
        """Whether a sequence that gains so much will make up for what a draft model has missed of it."""
        share = (self.policy.free_tokens + batch) / batch
        return self.policy.draft_cost * behind <= (1 - 1 / gain) * share * to_come

    def _attempt(self, luck: Acceptance, batch: int, per_step: int, behind: int, to_come: int) -> int:
        """1 if the pause at k = 0 is over, else 0. Whoever shares ``luck`` asks ``per_step`` times a step."""
        if luck.rest:
            luck.rest -= 1
            return 0
        _, gain = self._best(1.0, batch)
        if gain >= WORTH_TRYING and self._pays_back(gain, batch, behind, to_come):
            luck.pause = min(2 * luck.pause, LONGEST_PAUSE)
            luck.rest = luck.pause * per_step
            return 1
        return 0

    def count(self, acceptance: Acceptance, drafted: int, accepted: int) -> None:
        """A verification of ``drafted`` drafts is back. Where fewer were offered, the others count as wrong: they cost
        as much."""
        acceptance.count(drafted, accepted, FADE)
        self.overall.count(drafted, accepted, SLOW_FADE)
