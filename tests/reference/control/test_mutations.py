"""Who watches the watchmen: each line below breaks the control plane by hand, and the state machine must notice.

A mutant is a function, a piece of its source and what stands there instead. If the piece is no longer in the source the
test says so, so that the list cannot rot.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from quire.reference.control.kv_manager import KVManager
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.sequence import Sequence
from tests.reference.control.ghost import GhostRunner
from tests.reference.control.machine import DraftsAhead, SchedulerMachine


class Mutant(NamedTuple):
    """What is broken, where, and how."""

    what: str
    owner: type
    method: str
    old: str
    new: str
    machine: type[SchedulerMachine] = SchedulerMachine


class SmallChunksAhead(SchedulerMachine):
    """Prompts in flight in several chunks at once, often preempted: where stale results do harm."""

    depths = (2,)
    largest_chunk = 4
    modes = ("recompute",)


class SmallChunksSwapped(SchedulerMachine):
    """Prompts are swapped out between two chunks of them."""

    chunking = (True,)
    largest_chunk = 4
    modes = ("swap",)


class RightDrafts(SchedulerMachine):
    """Every sequence is drafted for from the beginning, and gains several tokens in a step."""

    speculating = (True,)
    drafts = 4


class WrongDrafts(SchedulerMachine):
    """The same, but some of each draft is wrong: lengths are taken back, across the ends of blocks."""

    block_sizes = (2, 4)
    caching = speculating = (True,)
    drafts, draft_errors = 4, 2


class WrongDraftsAhead(WrongDrafts):
    """Plans are made while such drafts are in flight."""

    depths = (1, 2)


MUTANTS = [
    Mutant("a fork forgets to count itself", KVManager, "fork", "self.pool.share(blocks)", "pass"),
    Mutant("a cache hit forgets to count itself", KVManager, "admit", "self.pool.share(cached)", "pass"),
    Mutant("a shared block is written in place", KVManager, "reserve", "refs[blocks[i]] > 1]", "False]"),
    Mutant(
        "the fast path overlooks that the tail block is shared",
        KVManager,
        "reserve",
        "and refs[blocks[first]] == 1",
        "",
    ),
    Mutant(
        "a block is copied after the write",
        GhostRunner,
        "run",
        "self._copies(plan)",
        "copies, plan.copies = plan.copies, []; late = [(c, c._replace(row=c.row)) for c in copies]; "
        "[self.rows[c.row].blocks.__setitem__(c.entry, c.dst) for c in copies]; "
        "self._writes(plan); [self.device.__setitem__(c.dst, list(self.device[c.src])) for c in copies]",
    ),
    Mutant("a block handed out stays in the prefix cache", KVManager, "_allocate", "self.prefix.evict(block)", "pass"),
    Mutant("the salt is left out of the hash", KVManager, "new_table", "chain_root(cache_salt)", "chain_root(None)"),
    Mutant(
        "a block's hash leaves out what comes before it",
        KVManager,
        "_extend_hashes",
        "hashes[-1] if hashes else table.root",
        "table.root",
    ),
    Mutant(
        "off by one in the last block",
        KVManager,
        "reserve",
        "end // size) - len(blocks)",
        "(end - 1) // size) - len(blocks)",
    ),
    Mutant(
        "a block is published before it is full", KVManager, "commit", "n_verified // self", "(n_verified + 1) // self"
    ),
    Mutant(
        "rejected drafts are published",
        Scheduler,
        "update",
        "verified = len(seq.tokens) + len(tokens) - 1",
        "rejected = planned.n_draft + 1 - len(tokens)",
        WrongDrafts,
    ),
    Mutant(
        "blocks reserved for drafts are kept",
        Scheduler,
        "update",
        "self.kv.trim(seq.table, seq.planned)",
        "pass",
        WrongDrafts,
    ),
    Mutant(
        "a draft model's blocks are not reserved",
        Scheduler,
        "_schedule_running",
        "propose if self._lookahead else 0",
        "0",
        RightDrafts,
    ),
    Mutant(
        "a sequence with drafts in flight is planned again",
        Scheduler,
        "_await_drafts",
        "seq.blocked = True",
        "pass",
        WrongDraftsAhead,
    ),
    Mutant(
        "rejected drafts stay on the length",
        Scheduler,
        "update",
        "min(seq.planned, verified + seq.coming)",
        "seq.planned",
    ),
    Mutant(
        "a length with drafts in flight is no upper bound",
        Scheduler,
        "update",
        "min(seq.planned, verified + seq.coming)",
        "min(seq.planned, verified + seq.in_flight)",
        DraftsAhead,
    ),
    Mutant(
        "a plan says that a bound is exact",
        Scheduler,
        "_plan_sequence",
        "ahead=seq.coming > seq.in_flight",
        "ahead=False",
        DraftsAhead,
    ),
    Mutant(
        "a row is reused before it is given back",
        Scheduler,
        "_preempt",
        "self._ended_rows.append(seq.row)",
        "self._free_rows.append(seq.row)",
    ),
    Mutant(
        "a result of an ended epoch is accepted",
        Scheduler,
        "update",
        "if seq.epoch != planned.epoch:",
        "if False:",
        SmallChunksAhead,
    ),
    Mutant(
        "a preempted sequence restarts before its token in flight arrives",
        Scheduler,
        "_preempt",
        "if not seq.in_flight and not seq.blocked:",
        "if True:",
    ),
    Mutant(
        "a swap-out moves one block too few",
        KVManager,
        "swap_out",
        "self.blocks_for(length)",
        "max(self.blocks_for(length) - 1, 1)",
    ),
    Mutant(
        "a full cache hit writes into shared blocks", KVManager, "admit", "num_cached < len(tokens), list", "True, list"
    ),
    Mutant(
        "siblings draw the same random numbers",
        Scheduler,
        "_fork",
        "self._new_sequence(group, index, prompt), None",
        "self._new_sequence(group, 0, prompt), None",
    ),
    Mutant("a finished sequence keeps its blocks", Scheduler, "_finish", "self.kv.release(seq.table)", "pass"),
    Mutant("the token budget is overrun", Scheduler, "_schedule_running", "n = budget", "pass"),
    Mutant(
        "a mean starts behind what the prefix cache holds",
        Scheduler,
        "_schedule_waiting",
        "use_cache and not seq.sums",
        "use_cache",
    ),
    Mutant(
        "a mean goes on where it was swapped out",
        Scheduler,
        "_preempt",
        '== "swap" and not seq.sums',
        '== "swap"',
        SmallChunksSwapped,
    ),
    Mutant(
        "tokens behind a stop are kept", Sequence, "append", "event.token_ids = tokens[:count]", "pass", RightDrafts
    ),
    Mutant(
        "beams that wait for each other hold everything",
        Scheduler,
        "schedule",
        "self._preempt(self.running.pop(), plan)",
        "pass",
    ),
]


def mutate(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the broken source of the method in its own module and put it in place."""
    method = inspect.getattr_static(mutant.owner, mutant.method)
    source = textwrap.dedent(inspect.getsource(method))
    assert source.count(mutant.old) >= 1, f"{mutant.method} no longer contains {mutant.old!r}"
    namespace: dict[str, Any] = {}
    code = source.replace(mutant.old, mutant.new)
    globals_ = inspect.getmodule(mutant.owner).__dict__  # type: ignore[union-attr]
    exec(compile(code, f"<mutant: {mutant.what}>", "exec", dont_inherit=False), globals_, namespace)
    monkeypatch.setattr(mutant.owner, mutant.method, namespace[mutant.method])


def checks(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # finding it is enough; no time is spent on the smallest example
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("machine", [SmallChunksAhead, SmallChunksSwapped, RightDrafts, WrongDrafts, WrongDraftsAhead])
def test_where_nothing_is_broken_nothing_is_noticed(machine: type[SchedulerMachine]) -> None:
    """By the machines that are made for a mutant; test_scheduler_machine.py runs the others."""
    run_state_machine_as_test(machine, settings=checks(50))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.what.replace(" ", "-"))
def test_the_machine_notices(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within some hundred examples, mostly ten. One that takes longer wants a machine of its own."""
    mutate(mutant, monkeypatch)
    with pytest.raises(Exception):  # noqa: B017 - an assertion, or whatever the broken code runs into
        run_state_machine_as_test(mutant.machine, settings=checks(3000))
