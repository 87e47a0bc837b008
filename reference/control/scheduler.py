"""Scheduler: turns requests into step plans, and step results into events.

There is no prefill phase and no decode phase. A sequence has tokens whose K/V is not computed yet, a step has a budget
of tokens, and the scheduler hands the budget out: running sequences first, in order of their keys, then waiting ones.
When blocks run out, the last running sequence gives its blocks back and waits again (preemption). Since the first one
can always take blocks from all others, it always advances, and so every request ends.

Plans are made by lengths alone, so ``schedule`` may be called again before ``update`` has seen the last plan's result
(run-ahead). Three things keep that safe: the plans execute in order on one stream; an admission is counted (``epoch``),
so that a result which comes too late is recognised; and a preempted sequence with a token in flight waits for it.

A row is given back by the plan *after* its last one, so that no plan ends a row that it still uses, for instance as the
parent of a fork.

Source: iteration-level scheduling is Orca's (OSDI 2022), chunked prefill Sarathi's (2023), the phase-free form vLLM's.
"""

from __future__ import annotations

import heapq
from bisect import insort
from dataclasses import replace
from operator import attrgetter

from quire.reference.control import admission, beam
from quire.reference.control.config import SchedulerConfig
from quire.reference.control.kv_manager import KVManager
from quire.reference.control.params import BeamSearchParams, PoolingParams, RequestParams, SamplingParams
from quire.reference.control.plan import Copy, Fork, NewSeq, SeqPlan, StepPlan, StepResult
from quire.reference.control.request import Event, FinishReason, Request, SchedulerStats
from quire.reference.control.sequence import Group, Key, Sequence, Status
from quire.reference.control.speculation import Speculation, runs_ahead, tokens_to_come


class Scheduler:
    """Continuous batching over one KV manager. Not thread-safe: one owner calls all methods."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.kv = KVManager(config.num_blocks, config.block_size, config.num_host_blocks, config.enable_prefix_caching)
        self.groups: dict[str, Group] = {}
        self.sequences: dict[int, Sequence] = {}  # by seq_id
        self.running: list[Sequence] = []  # sorted by key: the last one is the first victim
        self.waiting: list[tuple[Key, Sequence]] = []  # a heap; finished ones are skipped when they come up
        self._to_fork: list[Group] = []
        self._free_rows = list(range(config.max_num_seqs))[::-1]
        self._ended_rows: list[int] = []  # to be given back by the next plan
        self._num_plans = self._num_requests = self._num_sequences = 0
        self._steps_in_flight = 0
        self._counts = SchedulerStats()  # of these, the counters
        policy = config.speculation
        self._speculation = None if policy is None else Speculation(policy)
        self._lookahead = policy is not None and policy.lookahead

    # --- requests -----------------------------------------------------------------------------------------------------

    def check(self, prompt_len: int, params: RequestParams) -> None:
        """Raise RequestError if such a request would be refused. Changes nothing."""
        admission.check(prompt_len, params, self.config)

    def add(self, request: Request) -> None:
        """Accept a request; it starts when there is room. RequestError, and nothing changed, if it could never run."""
        group = admission.new_group(request, self.config, self.groups, self._num_requests)
        self._num_requests += 1
        self.groups[request.request_id] = group
        self._enqueue(self._new_sequence(group, 0, request.prompt_token_ids))

    def abort(self, request_id: str) -> list[Event]:
        """Stop a request wherever it is; its blocks are free at once. Unknown or finished ones are ignored."""
        group = self.groups.get(request_id)
        if group is None:
            return []
        if isinstance(group.request.params, BeamSearchParams):
            events = [Event(request_id, 0, [], finish_reason="abort", beams=[])]
        else:
            unforked = range(1, 1 + group.num_unforked)
            indices = [*(seq.index for seq in group.sequences), *unforked]
            events = [Event(request_id, index, [], finish_reason="abort") for index in indices]
        group.num_unforked = 0
        for seq in list(group.sequences):
            self._finish(seq)
        self.groups.pop(request_id, None)  # still there if only siblings were left that had not been forked yet
        return events

    def finish(self, request_id: str, index: int) -> None:
        """End one sequence early, for a reason the scheduler cannot see, such as a stop string in its text."""
        group = self.groups.get(request_id)
        for seq in list(group.sequences) if group else ():
            if seq.index == index:
                self._finish(seq)

    def has_unfinished(self) -> bool:
        return bool(self.groups)

    # --- planning -----------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """The next step's plan, or None if nothing can be done before a pending result has come (or at all)."""
        plan = StepPlan(self._num_plans, ends=self._ended_rows)
        self._free_rows += self._ended_rows
        self._ended_rows = []
        self._fork(plan)
        preempted = self._counts.num_preemptions
        budget = self._schedule_running(plan)
        if self._counts.num_preemptions == preempted:  # else the freed blocks are for those that lacked them
            self._schedule_waiting(plan, budget)
            if not plan.seqs and not self._steps_in_flight and self.waiting and self.running:
                # Only beams hold rows here, each waiting for a sibling that waits for room. The youngest makes it.
                self._preempt(self.running.pop(), plan)
        if not (plan.seqs or plan.forks or self._counts.num_preemptions > preempted):
            self._ended_rows = plan.ends  # they can wait for a plan that does something
            del self._free_rows[len(self._free_rows) - len(plan.ends) :]
            return None
        self._num_plans += 1
        self._steps_in_flight += 1
        return plan

    def _fork(self, plan: StepPlan) -> None:
        """Create the siblings of sequences whose prompt is planned, and the children of beams that were chosen."""
        groups, self._to_fork = self._to_fork, []
        for group in groups:
            if isinstance(group.request.params, BeamSearchParams):
                for seq in list(group.sequences):
                    self._fork_beam(plan, seq)
                continue
            prompt = group.request.prompt_token_ids
            first = next((s for s in group.sequences if s.index == 0), None)
            for index in range(1, 1 + group.num_unforked):
                self._fork_sequence(plan, first, self._new_sequence(group, index, prompt), None)
            group.num_unforked = 0

    def _fork_beam(self, plan: StepPlan, seq: Sequence) -> None:
        """Give a chosen beam its token; each further choice becomes a child."""
        length, group = len(seq.tokens), seq.group
        for token, total in seq.choices[1:]:
            child = self._new_sequence(group, group.next_index, [*seq.tokens, token])
            child.cumulative_logprob = total
            group.next_index += 1
            self._fork_sequence(plan, seq, child, token)
        token, seq.cumulative_logprob = seq.choices[0]
        seq.choices, seq.blocked = [], False
        seq.tokens.append(token)
        seq.target = len(seq.tokens)
        if seq.status is Status.RUNNING:
            plan.forks.append(Fork(seq.row, seq.row, seq.seq_id, length, seq.index, seq.sampling, token))
        else:
            self._enqueue(seq)

    def _fork_sequence(self, plan: StepPlan, parent: Sequence | None, child: Sequence, token: int | None) -> None:
        """Let ``child`` share the blocks of ``parent``, or wait like a new sequence if that is gone or rows are."""
        if parent is None or parent.status is not Status.RUNNING or not self._free_rows:
            self._enqueue(child)
            return
        length = len(child.tokens) - (token is not None)
        child.table = self.kv.fork(parent.table, length)
        child.planned, child.followed = length, parent.followed
        self._start(child)
        plan.forks.append(Fork(child.row, parent.row, child.seq_id, length, child.index, child.sampling, token))

    def _schedule_running(self, plan: StepPlan) -> int:
        """Plan running sequences in order of their keys; returns the budget that is left."""
        budget, running, reserve = self.config.max_num_batched_tokens, self.running, self.kv.reserve
        i = 0
        while i < len(running) and budget > 0:
            seq = running[i]
            i += 1
            target = seq.target
            if seq.blocked or target >= seq.max_len:
                continue  # its next length is not known yet, or its last token is in flight
            start = seq.planned
            n = target - start
            num_drafts = 0
            if n == 1:
                if seq.drafts:
                    # One token at least is left for each of those behind it, and the last token is never a draft.
                    num_drafts = max(0, min(len(seq.drafts), seq.max_len - target - 1, budget - 1 - len(running) + i))
                    n += num_drafts
            elif n == 0:  # a fork: all K/V is there, the last position's logits are missing
                self._plan_sequence(plan, seq, start - 1, start, 0, [], write=False)
                budget -= 1
                continue
            elif n > budget:
                n = budget
            end = start + n
            propose = self._drafts_wanted(seq, end) if end - num_drafts == target else 0
            while (grant := reserve(seq.table, start, n, propose if self._lookahead else 0)) is None:
                if num_drafts or propose:  # nobody is preempted for the sake of drafts
                    n, num_drafts, propose = n - num_drafts, 0, 0
                    continue
                # Later ones in the order are not planned yet: nothing has to be taken out of the plan again.
                victim = running.pop()
                self._preempt(victim, plan)
                if victim is seq:
                    return budget
            for src, dst, index in grant.copies:
                plan.copies.append(Copy(src, dst, seq.row, index))
            self._plan_sequence(plan, seq, start, start + n, num_drafts, grant.new_blocks, propose=propose)
            budget -= n
        return budget

    def _schedule_waiting(self, plan: StepPlan, budget: int) -> None:
        """Admit waiting sequences in order of their keys. The first that does not fit stops it: nobody is overtaken."""
        waiting, newcomers = self.waiting, len(plan.seqs)
        while waiting and budget > 0 and self._free_rows:
            seq = waiting[0][1]
            if seq.status is Status.FINISHED:
                heapq.heappop(waiting)
                continue
            if not self.config.enable_chunked_prefill and seq.target - seq.planned > budget:
                break
            group = seq.group
            if seq.table.host_blocks:
                admitted = self.kv.swap_in(seq.table, seq.planned, seq.target, budget)
            else:
                # Prompt log-probabilities need the logits of every prompt position, so these must be computed.
                use_cache = group.prompt_logprobs is None or group.prompt_logprobs_sent or seq.index > 0
                use_cache = use_cache and not seq.sums
                admitted = self.kv.admit(seq.table, seq.tokens, budget, use_cache)
            if admitted is None:
                break
            heapq.heappop(waiting)
            start, end, write, blocks, swap_in = admitted
            self._start(seq)
            if seq.epoch == 1:
                num_cached = start if write else end
                self._counts.prefix_queries += seq.prompt_len
                self._counts.prefix_hits += num_cached
                if seq.index == 0:
                    group.num_cached_tokens = num_cached
            plan.starts.append(
                NewSeq(
                    seq.row, seq.seq_id, list(seq.tokens), seq.prompt_len, seq.params, group.request.seed, seq.index,
                    seq.stop_ids,
                )
            )  # fmt: skip
            plan.swap_in += swap_in
            self._counts.num_swapped_in += len(swap_in)
            self._plan_sequence(plan, seq, start, end, 0, blocks, write)
            budget -= end - start
        if self._speculation is not None:  # not before it is known how many have come
            for i in range(newcomers, len(plan.seqs)):
                self._ask_newcomer(plan.seqs[i])

    def _ask_newcomer(self, planned: SeqPlan) -> None:
        """Ask for drafts for a sequence that starts with this plan, if it has a token to come and there is room."""
        seq, end = self.sequences[planned.seq_id], planned.start + planned.n
        propose = self._drafts_wanted(seq, end) if planned.samples else 0
        if propose and self._lookahead:
            ahead = self.kv.reserve(seq.table, end, 0, propose)
            if ahead is None:
                return
            planned.new_blocks += ahead.new_blocks
        if propose:
            planned.propose, seq.followed = propose, end
            self._await_drafts(seq, propose)

    def _drafts_wanted(self, seq: Sequence, end: int) -> int:
        """How many drafts to ask for behind a step that computes all positions before ``end`` and samples."""
        if self._speculation is None or seq.acceptance is None or seq.max_len - end < 3:
            return 0
        # What the prefix cache has of a prompt, a draft model mostly has too; the rest is a small part of its cost.
        behind = end - seq.followed if end > seq.prompt_len else 0
        to_come = tokens_to_come(end - seq.prompt_len, seq.max_len - end)
        wanted = self._speculation.length(seq.acceptance, len(self.running), behind, to_come)
        # There must be room for them, and for the target's own token, even if this step's drafts are all accepted.
        return min(wanted, seq.max_len - end - 2)

    def _plan_sequence(
        self,
        plan: StepPlan,
        seq: Sequence,
        start: int,
        end: int,
        num_drafts: int,
        blocks: list[int],
        write: bool = True,
        propose: int = 0,
    ) -> None:
        """Put positions ``start .. end - 1`` into the plan and move the sequence's planned lengths on."""
        brings = end - num_drafts == seq.target
        pools = brings and isinstance(seq.params, PoolingParams)
        samples = brings and not pools
        plan.seqs.append(
            SeqPlan(
                seq.row, seq.seq_id, seq.epoch, start, end - start, num_drafts, blocks, samples, write, pools,
                propose if samples else 0, ahead=seq.coming > seq.in_flight,
            )
        )  # fmt: skip
        seq.planned, seq.drafts = end, seq.drafts[:num_drafts]
        if brings:
            seq.in_flight += 1
            seq.coming += num_drafts + 1
            seq.target = end + 1  # with drafts the upper bound
            group = seq.group
            if group.num_unforked:
                self._to_fork.append(group)
            if propose:
                seq.followed = end
            seq.blocked = isinstance(group.request.params, BeamSearchParams)
            if num_drafts or propose:
                self._await_drafts(seq, propose)

    def _await_drafts(self, seq: Sequence, propose: int) -> None:
        """How far it gets, and what its next step verifies, is known when this step is back; unless it runs ahead."""
        if seq.runs_ahead:
            seq.drafts = range(propose)
        else:
            seq.blocked = True

    # --- rows and status ----------------------------------------------------------------------------------------------

    def _new_sequence(self, group: Group, index: int, tokens: list[int]) -> Sequence:
        request = group.request
        priority = request.priority if self.config.policy == "priority" else 0
        seq = Sequence(
            seq_id=self._num_sequences,
            group=group,
            index=index,
            params=group.params,
            key=(priority, group.arrival, index),
            tokens=list(tokens),
            prompt_len=len(request.prompt_token_ids),
            max_len=group.max_len,
            stop_ids=group.stop_ids,
            table=self.kv.new_table(request.cache_salt),
        )
        wanted = isinstance(request.params, SamplingParams) and request.params.speculative is not False
        if self._speculation is not None and wanted:
            seq.acceptance = self._speculation.new()
            seq.runs_ahead = self._speculation.policy.ahead and runs_ahead(seq.sampling)
        self._num_sequences += 1
        group.sequences.append(seq)
        self.sequences[seq.seq_id] = seq
        return seq

    def _enqueue(self, seq: Sequence) -> None:
        heapq.heappush(self.waiting, (seq.key, seq))

    def _start(self, seq: Sequence) -> None:
        """Give a sequence a row; a new epoch begins."""
        seq.row = self._free_rows.pop()
        seq.epoch += 1
        seq.status = Status.RUNNING
        insort(self.running, seq, key=attrgetter("key"))

    def _preempt(self, seq: Sequence, plan: StepPlan) -> None:
        """Take row and blocks from a sequence (already off ``running``) that is not planned in this plan."""
        self._counts.num_preemptions += 1
        self._ended_rows.append(seq.row)
        seq.row, seq.status, seq.drafts = -1, Status.WAITING, []
        swaps = None
        if self.config.preemption_mode == "swap" and not seq.sums:
            swaps = self.kv.swap_out(seq.table, seq.planned)
        if swaps is None:  # by recompute, or the swap space is full
            self.kv.release(seq.table)
            seq.planned = seq.followed = 0
        else:
            plan.swap_out += swaps
            self._counts.num_swapped_out += len(swaps)
        if not seq.in_flight and not seq.blocked:  # else it is queued when that is over
            self._enqueue(seq)

    def _finish(self, seq: Sequence) -> None:
        """Forget a sequence: row and blocks go back, whatever is still in flight for it will be dropped."""
        if seq.status is Status.RUNNING:
            self._ended_rows.append(seq.row)
            self.running.remove(seq)
        self.kv.release(seq.table)
        seq.status = Status.FINISHED
        del self.sequences[seq.seq_id]
        if len(self.waiting) > 2 * len(self.sequences) + 16:  # mostly finished ones: let go of them
            self.waiting = [entry for entry in self.waiting if entry[1].status is not Status.FINISHED]
            heapq.heapify(self.waiting)
        group = seq.group
        group.sequences.remove(seq)
        if not group.sequences and not group.num_unforked:
            del self.groups[group.request.request_id]

    # --- results ------------------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan, result: StepResult) -> list[Event]:
        """Take in what a step brought: append tokens, publish full blocks, stop what has ended."""
        if result.step != plan.step:
            raise ValueError(f"the result of step {result.step} was given for the plan of step {plan.step}")
        self._steps_in_flight -= 1
        events: list[Event] = []
        logprobs, commit = result.logprobs, self.kv.commit
        for i, (planned, tokens) in enumerate(zip(plan.seqs, result.tokens, strict=True)):
            seq = self.sequences.get(planned.seq_id)
            if seq is None:
                continue  # it ended meanwhile: a stop found one step late, or an abort
            if i in result.prompt_logprobs and seq.group.prompt_logprobs is not None:
                first, entries = result.prompt_logprobs[i]
                seq.group.prompt_logprobs[first : first + len(entries)] = entries
            if seq.epoch != planned.epoch:
                continue  # a prompt chunk of an admission that was preempted; it has started anew since
            verified = planned.start + planned.n
            if planned.samples:
                seq.in_flight -= 1
                seq.coming -= planned.n_draft + 1
                if isinstance(seq.group.request.params, BeamSearchParams):
                    commit(seq.table, seq.tokens, verified)
                    seq.candidates = logprobs[i][0]
                    seq.target = len(seq.tokens)
                    self._advance_beams(seq.group, events)
                    continue
                if planned.ahead:
                    planned.start = len(seq.tokens) - 1  # for whoever looks at the plan now, as a trace does
                verified = len(seq.tokens) + len(tokens) - 1  # rejected drafts come off the length again
                event = seq.append(tokens)
                if planned.n_draft:
                    seq.planned = min(seq.planned, verified + seq.coming)
                    self._count_drafts(seq, planned.n_draft, result.accepted[i], event)
                if planned.n_draft or planned.propose:
                    seq.blocked = False
                    self.kv.trim(seq.table, seq.planned)
                if i in logprobs:
                    event.logprobs = logprobs[i][: len(event.token_ids)]
                events.append(event)
                seq.target = len(seq.tokens) + seq.coming
                drafts = result.drafts.get(i, [])
                seq.offered = len(drafts)
                if not seq.runs_ahead:
                    seq.drafts = drafts
                commit(seq.table, seq.tokens, min(verified, len(seq.tokens)))  # a stop cuts the tokens behind it
                if event.finish_reason is not None:
                    self._finish(seq)
                elif seq.status is Status.WAITING and not seq.in_flight:
                    seq.drafts = []  # its row, and the drafts in it, are gone
                    self._enqueue(seq)
                continue
            commit(seq.table, seq.tokens, verified)
            if planned.pools:
                group = seq.group
                events.append(
                    Event(
                        group.request.request_id, 0, [], num_cached_tokens=group.num_cached_tokens,
                        finish_reason="stop", scheduled_time=group.scheduled_time, embedding=result.pooled[i],
                    )
                )  # fmt: skip
                self._finish(seq)
        return events

    def _count_drafts(self, seq: Sequence, computed: int, agreed: int, event: Event) -> None:
        """So many drafts were verified, and so many agreed; planned ahead, there may be less than that in them."""
        assert self._speculation is not None and seq.acceptance is not None
        drafted = event.num_drafted = min(computed, seq.offered)
        accepted = event.num_accepted = min(agreed, drafted)
        self._speculation.count(seq.acceptance, computed, accepted)
        counts = self._counts
        counts.num_drafts += drafted > 0
        counts.num_draft_tokens += drafted
        counts.num_accepted_tokens += accepted
        by_position = counts.accepted_by_position
        by_position += [0] * (accepted - len(by_position))
        for position in range(accepted):
            by_position[position] += 1

    def _advance_beams(self, group: Group, events: list[Event]) -> None:
        """Once every beam of the group has reported: choose who lives on (forked by the next plan) and who ends."""
        params = group.request.params
        assert isinstance(params, BeamSearchParams)
        if any(seq.candidates is None for seq in group.sequences):
            return
        if beam.advance(group.sequences, params, group.completed):
            best = group.completed
            reason: FinishReason = best[0].finish_reason
            events.append(
                Event(
                    group.request.request_id, 0, [], num_cached_tokens=group.num_cached_tokens, finish_reason=reason,
                    beams=best, scheduled_time=group.scheduled_time,
                )
            )  # fmt: skip
            for seq in list(group.sequences):
                self._finish(seq)
            return
        for seq in [s for s in group.sequences if not s.choices]:
            self._finish(seq)
        self._to_fork.append(group)

    # --- inspection ---------------------------------------------------------------------------------------------------

    @property
    def num_plans(self) -> int:
        """Plans made so far: the number of the next one."""
        return self._num_plans

    @property
    def ended_rows(self) -> list[int]:
        """Rows that the next plan is going to end. Right after ``schedule`` they are those that it preempted."""
        return self._ended_rows

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running requests are not disturbed."""
        self.kv.reset_prefix_cache()

    def stats(self) -> SchedulerStats:
        """A snapshot. Costs a walk over the running sequences: ask once per step at most."""
        stats = replace(self._counts, num_running=len(self.running), num_copies=self.kv.num_copies)
        stats.num_waiting = len(self.sequences) - len(self.running)
        stats.accepted_by_position = list(self._counts.accepted_by_position)
        self.kv.fill_in(stats, ((seq.table, seq.planned) for seq in self.running))
        return stats
