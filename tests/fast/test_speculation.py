"""Speculation on the fast runner: whoever drafts, on the host or on the device, every answer stays as it is.

The target is mostly the suite's ``MemoryModel``, whose answers must be exactly those of the reference runner with the
request alone and without speculation. A MemoryModel that drafts for it agrees with it always, as long as its own K/V is
right: one stale or foreign position, and it says nonsense. So full acceptance is the test of its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.backend import build_engine
from quire.fast.runner import ModelRunner
from quire.fast.runner.rows import Rows
from quire.reference.config import EngineConfig
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.speculation import DraftPolicy
from quire.reference.engine import Engine
from quire.reference.runner import ModelRunner as ReferenceRunner
from quire.reference.speculation.draft_model import DraftModel as ReferenceDraftModel
from quire.reference.speculation.ngram import NGram
from quire.reference.speculation.suffix import Suffix
from tests.fast.drawn import COMPILED, DEVICE, GRAMMARS
from tests.fast.test_engine import (  # noqa: F401 - the fixtures
    ENGINES,
    MAX_LEN,
    REQUESTS,
    SAMPLED,
    SLOW,
    VOCAB,
    alone,
    answers,
    checkpoint,
    engine,
    mixtures,
)
from tests.reference.test_speculation import Scripted
from tests.runner_suite import MemoryModel

NAMES = [name for name in REQUESTS if COMPILED or name not in SLOW]


class Stranger(MemoryModel):
    """Agrees with a MemoryModel most of the time."""

    def logits(self, hidden: Any) -> Any:
        return super().logits(torch.where(hidden % 5 == 0, hidden + 1, hidden))


@dataclass
class OnDevice:
    """Writes what ``proposer`` offers into the rows, as if a kernel had. Plans may go on meanwhile, so it writes as
    many drafts as are wanted, and says how many of them were offered."""

    proposer: Scripted
    rows: Rows = field(init=False)

    def allocate_kv(self, num_blocks: int, num_host_blocks: int) -> None: ...

    def follow(self, plan: StepPlan) -> list[list[int]]:
        return []

    def draft(self, plan: StepPlan) -> Callable[[StepResult], None]:
        offers = {}
        tokens, lengths = self.rows.tokens.cpu().numpy(), self.rows.row_len.cpu().numpy()
        for i, s in enumerate(plan.seqs):
            if s.propose:
                length = int(lengths[s.row])
                drafts = self.proposer._continue(tokens[s.row, :length].tolist(), s.propose)
                self.rows.tokens[s.row, length : length + s.propose] = torch.tensor(drafts, dtype=torch.int32)
                offers[i] = drafts[: s.propose - length % 2]  # some are of nobody
        return lambda result: result.drafts.update(offers)


def speculating(k: int, *, adaptive: bool = False, drafter: Any, **changes: Any) -> Engine:
    """An engine with a proposer that looks up, or with a model that drafts."""
    model, ahead = isinstance(drafter, MemoryModel), isinstance(drafter, NGram | OnDevice)
    kind = {"draft_model": drafter} if model else {} if isinstance(drafter, OnDevice) else {"proposer": drafter}
    policy = DraftPolicy(
        most=k,
        adaptive=adaptive,
        draft_cost=0.1 if model else 0.0,
        lookahead=model,
        ahead=ahead and changes.get("async_scheduling", False),
    )
    own = engine(partial(ModelRunner, most_drafts=k, **kind), policy, **changes)
    if isinstance(drafter, OnDevice):
        runner: Any = own.runner
        runner.proposer, drafter.rows = drafter, runner.rows
    return own


def oracle(right: float, truth: dict[str, Any]) -> Scripted:
    """Knows the answers, and says the right token this often."""
    known = {}
    for name in NAMES:
        if REQUESTS[name][0] and "tokens" in truth[name][0]:
            known.setdefault(tuple(REQUESTS[name][0]), []).extend(c["tokens"] for c in truth[name].values())
    return Scripted(right, VOCAB, known)


DRAFTERS = {
    "garbage": (5, lambda truth: oracle(0.0, truth)),
    "an oracle": (7, lambda truth: oracle(0.9, truth)),
    "an oracle on the device": (3, lambda truth: OnDevice(oracle(0.8, truth))),
    "prompt lookup": (3, lambda truth: NGram(1, 4)),
    "suffix lookup": (3, lambda truth: Suffix(1, 4)),
    "a model that agrees": (5, lambda truth: MemoryModel(VOCAB)),
    "a model that mostly agrees": (3, lambda truth: Stranger(VOCAB)),
}
CASES = [
    ("garbage", "run-ahead"),
    ("an oracle", "run-ahead"),
    ("an oracle", "recompute"),
    ("prompt lookup", "run-ahead"),
    ("an oracle on the device", "run-ahead"),
    ("an oracle on the device", "swap"),
]
CASES += [("a model that mostly agrees", name) for name in ENGINES]
if COMPILED:
    CASES = [(drafter, name) for drafter in DRAFTERS for name in ENGINES]


@pytest.mark.parametrize(("drafter", "name"), CASES)
def test_every_request_is_answered_the_same(drafter: str, name: str, alone: dict[str, Any]) -> None:  # noqa: F811
    k, make = DRAFTERS[drafter]
    own = speculating(k, drafter=make(alone), **ENGINES[name])
    assert answers(own, NAMES) == {n: alone[n] for n in NAMES}
    stats = own.stats()
    assert stats.num_drafts > 2 and stats.num_accepted_tokens <= stats.num_draft_tokens
    if "oracle" in drafter or "agrees" in drafter:
        assert stats.num_accepted_tokens > 20
    if "num_blocks" in ENGINES[name]:
        assert stats.num_preemptions > 0


RULELESS = [name for name in NAMES if name not in ("rules", "bad words", "grammar")]


@settings(max_examples=60 if COMPILED else 3)
@given(mixture=mixtures(RULELESS), k=st.integers(1, 6), adaptive=st.booleans())
def test_the_draft_model_has_the_right_past_whatever_happens(
    alone: dict[str, Any],  # noqa: F811
    mixture: Any,
    k: int,
    adaptive: bool,
) -> None:
    """It has the target's logits, so it is right each time, unless its own cache is wrong or rules forbid its token."""
    config, names, aborted = mixture
    own = speculating(k, drafter=MemoryModel(VOCAB), adaptive=adaptive, **config)
    assert answers(own, names, aborted) == {name: alone[name] for name in names}
    stats = own.stats()
    assert stats.num_accepted_tokens == stats.num_draft_tokens


@settings(max_examples=60 if COMPILED else 3)
@given(mixture=mixtures(NAMES), k=st.integers(1, 6), adaptive=st.booleans(), right=st.sampled_from([0.0, 0.5, 0.9]))
def test_drafts_in_flight_change_nothing_whatever_happens(
    alone: dict[str, Any],  # noqa: F811
    mixture: Any,
    k: int,
    adaptive: bool,
    right: float,
) -> None:
    """Steps are planned by bounds of the lengths, which come down while they run."""
    config, names, aborted = mixture
    drafter = OnDevice(oracle(right, alone))
    own = speculating(k, drafter=drafter, adaptive=adaptive, **config | {"async_scheduling": True})
    assert answers(own, names, aborted) == {name: alone[name] for name in names}


def test_a_request_may_do_without(alone: dict[str, Any]) -> None:  # noqa: F811
    own = speculating(4, drafter=MemoryModel(VOCAB))
    for quiet in (True, False):
        params = SAMPLED(speculative=not quiet)
        own.add_request(REQUESTS["the same prompt"][0], params)
        tokens: list[int] = []
        drafted = 0
        while own.has_unfinished():
            for event in own.step():
                tokens += event.token_ids
                drafted += event.num_drafted
        assert tokens == alone["the same prompt"][0]["tokens"] and (drafted == 0) == quiet


@pytest.mark.parametrize("drafter", ["an oracle", "a model"])
def test_rejection_sampling_writes_what_the_reference_writes(drafter: str, alone: dict[str, Any]) -> None:  # noqa: F811
    """Another text than without speculation, and the same one on both planes: the random numbers are the same.

    Here, and only here, the text depends on who is in the batch. So the grammar, which begins when it is compiled,
    comes alone.
    """
    together = [["greedy", "the same prompt", "long", "n=3", "stops soon"]] + [["grammar"]] * GRAMMARS
    ours: dict[str, Any] = {"proposer": oracle(0.9, alone)}
    theirs: Any = oracle(0.9, alone)
    if drafter == "a model":
        ours = {"draft_model": Stranger(VOCAB)}
        sizes = {"max_num_seqs": 24, "block_size": 4, "device": DEVICE, "dtype": torch.float64}
        theirs = ReferenceDraftModel(Stranger(VOCAB), rejection=True, **sizes)  # type: ignore[arg-type]
    policy = DraftPolicy(most=3, adaptive=False, lookahead=drafter == "a model")
    reference = engine(partial(ReferenceRunner, proposer=theirs, rejection=True), policy)
    own = engine(partial(ModelRunner, most_drafts=3, rejection=True, **ours), policy)
    for names in together:
        assert answers(own, names) == answers(reference, names)
    assert own.stats().num_accepted_tokens > 0


def test_a_draft_model_as_the_backend_builds_it(checkpoint: Path) -> None:  # noqa: F811
    """The target drafts for itself: every draft is right, but for near-ties."""
    alike = {"dtype": "float32", "device": DEVICE, "num_blocks": 20, "max_num_seqs": 8, "max_model_len": MAX_LEN}
    drafts = {"model": str(checkpoint), "num_speculative_tokens": 3, "adaptive": False}
    plain = build_engine(EngineConfig(model=str(checkpoint), **alike), checkpoint, plane="fast")
    config = EngineConfig(model=str(checkpoint), speculative_config=drafts, **alike)
    own = build_engine(config, checkpoint, plane="fast")
    names = ["the same prompt", "n=3"]
    got, expected = (
        {name: [c["tokens"] for c in one.values()] for name, one in answers(engine, names).items()}
        for engine in (own, plain)
    )
    assert got == expected
    stats = own.stats()
    assert 10 < stats.num_accepted_tokens == stats.num_draft_tokens
