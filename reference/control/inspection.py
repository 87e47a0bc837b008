"""Looking into the control plane while it runs: for traces, and for whoever draws them.

A plan tells what a step changes, not where everything stands, and some changes are in no plan: who was preempted, which
blocks the end of a sequence set free, what the prefix cache learned and forgot. A ``Watch`` follows these from step to
step, at a cost that goes with what has changed; without one nothing is noted. ``snapshot`` is the whole state at once,
for somebody who comes later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from quire.reference.control.block_tables import BlockTables
from quire.reference.control.plan import StepPlan
from quire.reference.control.request import Request, SchedulerStats
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.sequence import Status

Tables = dict[int, list[int] | None]  # row -> its block table; None: the row has none any more
CacheEntry = tuple[bytes, bytes]  # the name of a cached block, and that of the block before it (or of the chain's root)


class Planned(NamedTuple):
    """What a plan has changed, when it is made.

    owners      seq_id -> request id, of sequences that start or fork
    tables      after the plan's changes and before its forward pass
    preempted   rows that gave their blocks back for those in this plan; ``tables`` has None for them
    """

    owners: dict[int, str]
    tables: Tables
    preempted: list[int]


class Landed(NamedTuple):
    """What has changed when a step's results are in.

    tables   None for rows whose sequence has ended, a shorter table where drafts were rejected
    cache    block -> what the prefix cache knows it by since, None if it was given to somebody else
    """

    tables: Tables
    cache: dict[int, CacheEntry | None]


class Watch:
    """Follows one scheduler: call ``planned`` for each plan when it is made, ``landed`` when its results are in."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._tables = BlockTables(scheduler.config.block_size)
        self._tables.rows = {seq.row: list(seq.table.blocks) for seq in scheduler.running}
        self._prefix = scheduler.kv.prefix
        if self._prefix is not None:
            self._prefix.touched = set()

    def planned(self, plan: StepPlan) -> Planned:
        """Take over a plan's changes."""
        tables = self._tables.rows
        changed = self._tables.apply(plan)
        preempted = [row for row in self._scheduler.ended_rows if row in tables]
        for row in preempted:
            del tables[row]
            changed[row] = None
        sequences = self._scheduler.sequences
        new = [s.seq_id for s in plan.starts] + [f.seq_id for f in plan.forks]
        owners = {seq_id: sequences[seq_id].group.request.request_id for seq_id in new}
        copies = {row: None if blocks is None else list(blocks) for row, blocks in changed.items()}
        return Planned(owners, copies, preempted)

    def landed(self, plan: StepPlan) -> Landed:
        """What a step has brought, once the scheduler has its results."""
        tables, changed = self._tables.rows, Tables()
        for planned in plan.seqs:
            blocks = tables.get(planned.row)
            seq = self._scheduler.sequences.get(planned.seq_id)
            if blocks is None:
                continue
            if seq is None:
                changed[planned.row] = None  # it stays in ``tables`` until its row ends: a later plan may name it
            elif seq.row == planned.row and len(seq.table.blocks) < len(blocks):
                del blocks[len(seq.table.blocks) :]
                changed[planned.row] = list(blocks)
        return Landed(changed, self._cache_changes())

    def close(self) -> None:
        if self._prefix is not None:
            self._prefix.touched = None

    def _cache_changes(self) -> dict[int, CacheEntry | None]:
        if self._prefix is None or not self._prefix.touched:
            return {}
        touched, self._prefix.touched = self._prefix.touched, set()
        return {block: self._prefix.entry(block) for block in touched}


@dataclass(frozen=True, slots=True)
class SequenceState:
    """One sequence as it stands. ``row`` is -1 while it waits; ``host_blocks`` are those it has been swapped out to.

    ``length`` counts its tokens that are known, ``computed`` those whose K/V is there or planned.
    """

    seq_id: int
    row: int
    request_id: str
    stream: int
    prompt_len: int
    length: int
    computed: int
    host_blocks: list[int]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state: requests not yet done, their sequences, all block tables, what is cached.

    step     the number of the next plan; what those before it changed is in here, though some may not have landed
    tables   row -> block table
    cache    block -> its name, and that of the block before it
    """

    step: int
    requests: list[Request]
    sequences: list[SequenceState]
    tables: dict[int, list[int]]
    cache: dict[int, CacheEntry]
    stats: SchedulerStats


def snapshot(scheduler: Scheduler, held: Iterable[Request], stats: SchedulerStats) -> Snapshot:
    """The scheduler's state. ``held`` are requests that wait elsewhere, before the scheduler has them."""
    return Snapshot(
        step=scheduler.num_plans,
        requests=[*(group.request for group in scheduler.groups.values()), *held],
        sequences=[
            SequenceState(
                seq.seq_id, seq.row if seq.status is Status.RUNNING else -1, seq.group.request.request_id, seq.index,
                seq.prompt_len, len(seq.tokens), seq.planned, list(seq.table.host_blocks),
            )
            for seq in scheduler.sequences.values()
        ],
        tables={seq.row: list(seq.table.blocks) for seq in scheduler.running},
        cache={} if scheduler.kv.prefix is None else scheduler.kv.prefix.entries(),
        stats=stats,
    )  # fmt: skip
