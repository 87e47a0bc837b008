"""The state machine: hypothesis drives the scheduler through any order of events while the ghost runner watches.

Steps may be launched ahead of their results, the pool shrinks and grows, single reservations fail, the free list and
every group of a plan are shuffled, new blocks hold garbage. In the end every request must have produced exactly what
it produces alone, and every block and row must have come home.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.reference.control.config import SchedulerConfig
from quire.reference.control.errors import RequestError
from quire.reference.control.kv_manager import BlockTable, Grant, KVManager
from quire.reference.control.params import BeamSearchParams, PoolingParams, SamplingParams
from quire.reference.control.plan import StepPlan, StepResult
from quire.reference.control.request import Event, Request
from quire.reference.control.scheduler import Scheduler
from quire.reference.control.speculation import DraftPolicy
from tests.reference.control.ghost import EOS, VOCAB, GhostRunner, alone, beams_alone, check_counts, embedding_alone

MAX_MODEL_LEN = 28
PROMPTS = [[1 + (i * i + salt) % (VOCAB - 1) for i in range(40)] for salt in (0, 5)]  # two families of prefixes


class WatchedKV(KVManager):
    """A KV manager that tells which blocks it hands out and can be made to fail; failing must change nothing."""

    def watch(self) -> None:
        self.fresh: list[int] = []
        self.failures = 0

    def _allocate(self, n: int) -> list[int]:
        blocks = super()._allocate(n)
        self.fresh += blocks
        return blocks

    def reserve(self, table: BlockTable, start: int, n: int, lookahead: int = 0) -> Grant | None:
        before = (list(table.blocks), list(self.pool.refs), list(self.pool._free), self.num_copies)
        if self.failures:
            self.failures -= 1
            return None
        grant = super().reserve(table, start, n, lookahead)
        if grant is None:
            assert before == (table.blocks, self.pool.refs, list(self.pool._free), self.num_copies)
        return grant


class SchedulerMachine(RuleBasedStateMachine):
    """Rules are what can happen to a scheduler; ``depth`` is how far it runs ahead (0: synchronous)."""

    make_runner = GhostRunner
    depths = (0, 1, 2)
    chunking = (False, True)
    largest_chunk = 12
    modes = ("recompute", "swap")
    block_sizes = (1, 2, 4)
    caching = (True, True, False)
    speculating = (False, True)
    most_drafts = 5
    proposers: tuple[dict[str, bool], ...] = ({}, {"lookahead": True}, {"ahead": True})
    drafts = draft_errors = 0  # what is proposed until a rule says otherwise

    @initialize(data=st.data(), seed=st.integers(0, 2**16))
    def start(self, data: st.DataObject, seed: int) -> None:
        self.random = random.Random(seed)
        choose = lambda *options: data.draw(st.sampled_from(options))  # noqa: E731
        chunked = choose(*self.chunking)
        block_size = choose(*self.block_sizes)
        enough = MAX_MODEL_LEN // block_size + 2
        self.config = SchedulerConfig(
            num_blocks=data.draw(st.integers(enough, 3 * enough)),
            num_host_blocks=choose(0, enough // 2, 2 * enough),
            max_model_len=MAX_MODEL_LEN,
            block_size=block_size,
            max_num_seqs=data.draw(st.integers(1, 8)),
            max_num_batched_tokens=data.draw(st.integers(1, self.largest_chunk)) if chunked else MAX_MODEL_LEN + 4,
            enable_chunked_prefill=chunked,
            enable_prefix_caching=choose(*self.caching),
            policy=choose("fcfs", "priority"),
            preemption_mode=choose(*self.modes),
            speculation=self._policy(data) if choose(*self.speculating) else None,
        )
        self.depth = choose(*self.depths)
        self.scheduler = Scheduler(self.config)
        self.kv = WatchedKV(
            self.config.num_blocks, block_size, self.config.num_host_blocks, self.config.enable_prefix_caching
        )
        self.kv.watch()
        self.scheduler.kv = self.kv
        self.ghost = self.make_runner(self.scheduler)
        self.speculate(self.drafts, self.draft_errors)
        self.pending: deque[tuple[StepPlan, StepResult]] = deque()
        self.requests: dict[str, Request] = {}
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.beams: dict[str, list[tuple[list[int], float]]] = {}
        self.embeddings: dict[str, bytes] = {}
        self.ended: set[tuple[str, int]] = set()
        self.cut: set[tuple[str, int]] = set()  # aborted, or ended from outside: must have a prefix of the output
        self.hostages: list[int] = []

    def _policy(self, data: st.DataObject) -> DraftPolicy:
        return DraftPolicy(
            most=data.draw(st.integers(1, self.most_drafts)),
            adaptive=data.draw(st.booleans()),
            free_tokens=data.draw(st.sampled_from([1.0, 8.0, 100.0])),
            **data.draw(st.sampled_from(self.proposers)),
        )

    # --- what can happen ----------------------------------------------------------------------------------------------

    @rule(
        family=st.sampled_from([0, 1]),
        length=st.integers(1, 20),
        tail=st.lists(st.integers(1, VOCAB - 1), max_size=3),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        extra=st.sampled_from([0, 0, 1]),
        max_tokens=st.one_of(st.none(), st.integers(1, 12)),
        min_tokens=st.sampled_from([0, 0, 1, 3]),
        ignore_eos=st.booleans(),
        stop=st.lists(st.integers(1, VOCAB - 1), max_size=1),
        speculative=st.sampled_from([None, True, False]),
        seed=st.integers(0, 3),
        salt=st.sampled_from([None, None, "other"]),
        priority=st.integers(0, 2),
    )
    def add(
        self,
        family: int,
        length: int,
        tail: list[int],
        n: int,
        extra: int,
        max_tokens: int | None,
        min_tokens: int,
        ignore_eos: bool,
        stop: list[int],
        speculative: bool | None,
        seed: int,
        salt: str | None,
        priority: int,
    ) -> None:
        params = SamplingParams(
            n=n,
            best_of=n + extra,
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens or 3),
            ignore_eos=ignore_eos,
            stop_token_ids=stop,
            speculative=speculative,
        )
        self._add(Request(self._id(), PROMPTS[family][:length] + tail, params, seed, (EOS,), priority, salt))

    @rule(
        family=st.sampled_from([0, 1]),
        length=st.integers(1, 12),
        width=st.integers(1, 4),
        max_tokens=st.integers(1, 8),
        ignore_eos=st.booleans(),
        penalty=st.sampled_from([0.0, 1.0, 2.0, -1.0]),
    )
    def add_beams(
        self, family: int, length: int, width: int, max_tokens: int, ignore_eos: bool, penalty: float
    ) -> None:
        params = BeamSearchParams(
            beam_width=width, max_tokens=max_tokens, ignore_eos=ignore_eos, length_penalty=penalty
        )
        self._add(Request(self._id(), PROMPTS[family][:length], params, 0, (EOS,)))

    @rule(
        family=st.sampled_from([0, 1]),
        length=st.integers(1, MAX_MODEL_LEN),
        pooling=st.sampled_from(["mean", "last"]),
        salt=st.sampled_from([None, None, "other"]),
        priority=st.integers(0, 2),
    )
    def add_pooled(self, family: int, length: int, pooling: str, salt: str | None, priority: int) -> None:
        params = PoolingParams(pooling=pooling)
        self._add(Request(self._id(), PROMPTS[family][:length], params, 0, (EOS,), priority, salt))

    def _id(self) -> str:
        return f"r{len(self.requests)}"

    def _add(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except RequestError:
            assert request.request_id not in self.scheduler.groups  # too wide or too long for this pool
        else:
            self.requests[request.request_id] = request

    @rule(times=st.integers(1, 4))
    def launch(self, times: int) -> None:
        """Plan steps and run them; each result is delivered at once, or up to ``depth`` steps later."""
        for _ in range(times):
            self._launch()
            while len(self.pending) > self.depth:
                self._deliver()

    def _launch(self) -> bool:
        free = list(self.kv.pool._free)
        if self.random.random() < 0.3:
            self.random.shuffle(free)
            self.kv.pool._free = OrderedDict.fromkeys(free)
        plan = self.scheduler.schedule()
        if plan is None:
            return False
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len({s.row for s in plan.seqs}) == len(plan.seqs)
        for group in (plan.ends, plan.starts, plan.swap_out, plan.copies, plan.swap_in, plan.seqs):
            self.random.shuffle(group)  # type: ignore[arg-type]
        self.ghost.fresh, self.kv.fresh = self.kv.fresh, []
        self.pending.append((plan, self.ghost.run(plan)))
        return True

    @precondition(lambda self: self.pending)
    @rule()
    def deliver(self) -> None:
        self._deliver()

    def _deliver(self) -> None:
        for event in self.scheduler.update(*self.pending.popleft()):
            self._note(event)

    def _note(self, event: Event) -> None:
        key = (event.request_id, event.index)
        assert key not in self.ended, "an event after the last one"
        if event.finish_reason is not None:
            self.ended.add(key)
        if event.beams is not None and event.finish_reason != "abort":
            self.beams[event.request_id] = [(b.token_ids, b.cumulative_logprob) for b in event.beams]
        elif event.embedding is not None:
            assert not event.token_ids and event.finish_reason == "stop"
            self.embeddings[event.request_id] = event.embedding
        else:
            self.outputs.setdefault(key, []).extend(event.token_ids)

    @precondition(lambda self: self.scheduler.groups)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.scheduler.groups)))
        for event in self.scheduler.abort(request_id):
            self._note(event)
            self.cut.add((event.request_id, event.index))
        assert request_id not in self.scheduler.groups
        assert all(s.group.request.request_id != request_id for s in self.scheduler.sequences.values())

    @precondition(lambda self: any(key not in self.ended for key in self.outputs))
    @rule(data=st.data())
    def stop_string(self, data: st.DataObject) -> None:
        """Whoever watches the text ends one sequence."""
        key = data.draw(st.sampled_from(sorted(key for key in self.outputs if key not in self.ended)))
        self.scheduler.finish(*key)
        self.cut.add(key)
        self.ended.add(key)

    @rule(times=st.integers(1, 2), before=st.integers(0, 2), after=st.integers(0, 2))
    def preempt(self, times: int, before: int, after: int) -> None:
        """Reservations fail as if the pool were full, whatever the victim has in flight; then it may come back."""
        self.launch(before)
        self.kv.failures = times
        self.launch(after)

    @rule(share=st.sampled_from([0.3, 0.7, 1.0]))
    def shrink_pool(self, share: float) -> None:
        """Somebody else takes free blocks."""
        self.hostages += self.kv._allocate(int(share * self.kv.pool.num_free))

    @rule()
    def grow_pool(self) -> None:
        self.kv.pool.release(self.hostages)
        self.hostages = []

    @rule()
    def reset_prefix_cache(self) -> None:
        self.scheduler.reset_prefix_cache()

    @rule(num_drafts=st.integers(0, 4), errors=st.integers(0, 4))
    def speculate(self, num_drafts: int, errors: int) -> None:
        """From now on the proposer offers drafts, the last ones wrong."""
        self.ghost.num_drafts, self.ghost.draft_errors = num_drafts, errors

    # --- what must always hold ----------------------------------------------------------------------------------------

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "scheduler"):
            check_counts(self.scheduler, self.hostages)
            self.ghost.check_published()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.grow_pool()
        self.kv.failures = 0
        for _ in range(4000):
            launched = self._launch()
            progress = launched or bool(self.pending)
            while len(self.pending) > (self.depth if launched else 0):
                self._deliver()
            if not self.scheduler.has_unfinished():
                break
            assert progress, "unfinished requests, and nothing to do"
        assert not self.scheduler.has_unfinished(), "a request starves"
        assert self.kv.pool.num_used == self.kv.host_pool.num_used == self.kv.pool.total_refs == 0
        for request_id, request in self.requests.items():
            if isinstance(request.params, BeamSearchParams):
                if (request_id, 0) not in self.cut:
                    assert self.beams[request_id] == beams_alone(request, MAX_MODEL_LEN)
                continue
            if isinstance(request.params, PoolingParams):
                assert (request_id, 0) in self.ended
                if (request_id, 0) not in self.cut:
                    assert self.embeddings[request_id] == embedding_alone(request)
                continue
            for index, output in alone(request, MAX_MODEL_LEN).items():
                key = (request_id, index)
                got = self.outputs.get(key, [])
                assert key in self.ended
                assert got == (output[: len(got)] if key in self.cut else output), f"{key} differs from it alone"


class DraftsAhead(SchedulerMachine):
    """Steps are planned while drafts are in flight, by bounds of the lengths: few drafts, for answers are short."""

    depths = (1, 2)
    speculating = (True,)
    most_drafts = 2
    proposers = ({"ahead": True},)
