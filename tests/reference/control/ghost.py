"""The ghost runner: a data plane without a model, which notices every mistake of the control plane.

A KV cell holds (position, prefix hash) instead of numbers, so a read can check that it finds what its own prefix wrote.
The next token is a hash of the prefix, so any wrong read, wrong token or wrong order changes the output for good, and
``alone`` can say what the output must be without any engine. The embedding of a prompt is made of these hashes too: of
the last one, or added up as the positions come.

Plans are executed when they are launched, in launch order, as one stream would; with run-ahead only the delivery of
results is late.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field

from quire.reference.control.params import BeamSearchParams, PoolingParams
from quire.reference.control.plan import Logprobs, NewSeq, SeqPlan, StepPlan, StepResult
from quire.reference.control.request import Request
from quire.reference.control.scheduler import Scheduler

VOCAB = 13
EOS = 0
GARBAGE = (-1, -1)


def extend(prefix: int, token: int) -> int:
    """Hash of a prefix that is one token longer."""
    return hash((prefix, token))


def root(salt: str | None) -> int:
    """Hash of the empty prefix. K/V of different salts differ (another adapter, another image)."""
    return sum(map(ord, salt or "")) + 1


def hash_of(tokens: list[int], salt: str | None) -> int:
    prefix = root(salt)
    for token in tokens:
        prefix = extend(prefix, token)
    return prefix


def next_token(prefix: int, seed: int, stream: int) -> int:
    """What the ghost samples after this prefix: depends on nothing but prefix, seed and stream."""
    return hash((prefix, seed, stream)) % VOCAB


def candidates(prefix: int, k: int) -> Logprobs:
    """Sampled token first, then the k likeliest tokens: distinct log-probabilities from the hash."""
    scores = {token: -((hash((prefix, token, 5)) % 9973) + token / VOCAB) / 1000 - 0.01 for token in range(VOCAB)}
    best = sorted(scores, key=lambda t: -scores[t])
    return Logprobs([best[0], *best[:k]], [scores[best[0]], *(scores[t] for t in best[:k])], 1)


def embedding(hashes: list[int]) -> bytes:
    """What the ghost makes of the pooled positions' prefix hashes; their order does not count."""
    return struct.pack("<Q", sum(hashes) % 2**64)


@dataclass
class Row:
    """What a runner remembers of one sequence."""

    seq_id: int
    tokens: list[int]
    prompt_len: int
    seed: int
    stream: int
    params: object
    salt: str | None
    blocks: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    pooled: list[int] = field(default_factory=list)  # prefix hashes of the positions computed since the row started

    def prefix(self, length: int) -> int:
        return hash_of(self.tokens[:length], self.salt)


class GhostRunner:
    """Executes plans for ``scheduler`` (at whose tables and counts it also looks, to compare)."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        kv = scheduler.kv
        self.block_size = kv.block_size
        self.device = [[GARBAGE] * kv.block_size for _ in range(kv.pool.num_blocks + 1)]
        self.host = [[GARBAGE] * kv.block_size for _ in range(kv.host_pool.num_blocks + 1)]
        self.rows: dict[int, Row] = {}
        self.published: dict[bytes, tuple[int, int]] = {}  # name of a block -> its last cell
        self.fresh: list[int] = []  # blocks allocated since the last plan: they hold garbage
        self.num_drafts = 0  # how many drafts to propose ...
        self.draft_errors = 0  # ... the last so many of them wrong

    def run(self, plan: StepPlan) -> StepResult:
        self._rows(plan)
        assert not (plan.swap_out and plan.swap_in), (
            "host blocks are freed at once, so one plan must not use them twice"
        )
        for swap in plan.swap_out:
            self.host[swap.host] = list(self.device[swap.device])
        for block in self.fresh:
            self.device[block] = [GARBAGE] * self.block_size
        self.fresh = []
        self._copies(plan)
        for swap in plan.swap_in:
            self.device[swap.device] = list(self.host[swap.host])
        self._writes(plan)
        return self._reads_and_samples(plan)

    def _rows(self, plan: StepPlan) -> None:
        for row in plan.ends:
            assert row in self.rows, f"row {row} ends but was not live"
            del self.rows[row]
        for new in plan.starts:
            assert new.row not in self.rows, f"row {new.row} starts but is live"
            self.rows[new.row] = self._new_row(new)
        children = {}
        for fork in plan.forks:
            parent = self.rows[fork.parent_row]
            in_place = fork.row == fork.parent_row
            assert in_place or (fork.row not in self.rows and fork.row not in children), "a fork needs a fresh row"
            tokens = parent.tokens[: fork.length]
            assert len(tokens) == fork.length
            blocks = parent.blocks[: -(-fork.length // self.block_size)]
            if fork.token is not None:
                tokens.append(fork.token)
            children[fork.row] = Row(
                fork.seq_id, tokens, parent.prompt_len, parent.seed, fork.stream, fork.params, parent.salt, blocks
            )
        self.rows.update(children)

    def _new_row(self, new: NewSeq) -> Row:
        salt = self.scheduler.sequences[new.seq_id].group.request.cache_salt
        return Row(new.seq_id, list(new.token_ids), new.prompt_len, new.seed, new.stream, new.params, salt)

    def _copies(self, plan: StepPlan) -> None:
        assert not {c.src for c in plan.copies} & {c.dst for c in plan.copies}, "a copy's destination is a source"
        assert len({c.dst for c in plan.copies}) == len(plan.copies)
        contents = [list(self.device[c.src]) for c in plan.copies]
        for copy, content in zip(plan.copies, contents, strict=True):
            row = self.rows[copy.row]
            assert row.blocks[copy.entry] == copy.src, "a copy of a block that the row does not hold"
            self.device[copy.dst] = content
            row.blocks[copy.entry] = copy.dst

    def _writes(self, plan: StepPlan) -> None:
        written = set()
        for s in plan.seqs:
            row = self.rows[s.row]
            assert row.seq_id == s.seq_id, f"row {s.row} belongs to sequence {row.seq_id}, not {s.seq_id}"
            if s.new_blocks:  # what the row had behind its positions was reserved for drafts that were rejected
                row.blocks = row.blocks[: -(-s.start // self.block_size)] + s.new_blocks
            table = self.scheduler.sequences[s.seq_id].table
            assert row.blocks[: len(table.blocks)] == table.blocks, "runner and scheduler disagree on a block table"
            row.blocks = list(table.blocks)
            assert 0 not in row.blocks and len(set(row.blocks)) == len(row.blocks)
            assert s.start >= len(row.tokens) - 1 if s.ahead else s.start < len(row.tokens), "not a bound, or not exact"
            start = len(row.tokens) - 1 if s.ahead else s.start
            if s.n_draft:
                assert len(row.drafts) >= s.n_draft
                row.tokens += row.drafts[: s.n_draft]
            assert start + s.n <= len(row.tokens), "computes a token that does not exist"
            prefix = row.prefix(start)
            for p in range(start, start + s.n):
                prefix = extend(prefix, row.tokens[p])
                if s.write:
                    block, slot = row.blocks[p // self.block_size], p % self.block_size
                    assert self.scheduler.kv.pool.refs[block] == 1, f"block {block} is shared and written"
                    assert (block, slot) not in written, "two sequences write one slot"
                    written.add((block, slot))
                    self.device[block][slot] = (p, prefix)

    def _reads_and_samples(self, plan: StepPlan) -> StepResult:
        result = StepResult(plan.step, [])
        for i, s in enumerate(plan.seqs):
            row = self.rows[s.row]
            prefix = root(row.salt)
            for p in range(len(row.tokens) if s.samples else s.start + s.n):
                prefix = extend(prefix, row.tokens[p])
                cell = self.device[row.blocks[p // self.block_size]][p % self.block_size]
                assert cell == (p, prefix), f"sequence {s.seq_id} reads {cell} at position {p}"
            if isinstance(row.params, PoolingParams):
                result.tokens.append([])
                self._pool(row, s, i, result)
                continue
            assert not s.pools
            if not s.samples:
                assert s.start + s.n < len(row.tokens)
                result.tokens.append([])
                continue
            gained = self._verify(row, s.n_draft)
            result.tokens.append(gained)
            if s.n_draft:
                result.accepted[i] = len(gained) - 1
            k = getattr(row.params, "logprobs", None)
            if k is not None:
                result.logprobs[i] = [candidates(row.prefix(len(row.tokens) - 1), k)] * len(gained)
            self._draft_kv(row, s)
            row.drafts = self._propose(row, min(s.propose, self.num_drafts))
            if row.drafts:
                result.drafts[i] = list(row.drafts)
            if self.scheduler.sequences[s.seq_id].runs_ahead:  # as many as it will verify, whatever they are
                row.drafts += [0] * (s.propose - len(row.drafts))
        return result

    def _pool(self, row: Row, s: SeqPlan, i: int, result: StepResult) -> None:
        """Take in one chunk of a prompt that becomes an embedding; with "mean" every position, once and in order."""
        assert not s.samples and not s.n_draft and len(row.tokens) == row.prompt_len
        assert s.pools == (s.start + s.n == row.prompt_len)
        if row.params.pooling == "mean":
            assert s.write and s.start == len(row.pooled), f"position {s.start} comes after {len(row.pooled)} positions"
        row.pooled += [row.prefix(p + 1) for p in range(s.start, s.start + s.n)]
        if s.pools:
            result.pooled[i] = embedding(row.pooled if row.params.pooling == "mean" else row.pooled[-1:])

    def check_published(self) -> None:
        """Every block in the prefix cache is full of computed K/V, always the same under the same name."""
        for name, block in self.scheduler.kv.prefix.items() if self.scheduler.kv.prefix else ():
            cells = self.device[block]
            assert GARBAGE not in cells, f"block {block} was published before it was full"
            assert [p % self.block_size for p, _ in cells] == list(range(self.block_size))
            assert self.published.setdefault(name, cells[-1]) == cells[-1], f"block {block} has another block's name"

    def _verify(self, row: Row, n_draft: int) -> list[int]:
        """Take the drafts that agree with the target, then the target's own token; the row ends there."""
        length = len(row.tokens) - n_draft
        drafts, row.tokens = row.tokens[length:], row.tokens[:length]
        gained = []
        for draft in [*drafts, None]:
            token = next_token(row.prefix(len(row.tokens)), row.seed, row.stream)
            row.tokens.append(token)
            gained.append(token)
            if draft != token:
                break
        return gained

    def _draft_kv(self, row: Row, s: SeqPlan) -> None:
        """A draft model writes K/V where its drafts will stand: these blocks must be the row's own."""
        policy = self.scheduler.config.speculation
        if s.propose and policy is not None and policy.lookahead:
            for p in range(s.start + s.n, s.start + s.n + s.propose):
                block = row.blocks[p // self.block_size]
                assert self.scheduler.kv.pool.refs[block] == 1, f"block {block} is shared, and a draft model writes it"

    def _propose(self, row: Row, count: int) -> list[int]:
        history, drafts = list(row.tokens), []
        for i in range(count):
            token = next_token(hash_of(history, row.salt), row.seed, row.stream)
            if i >= count - self.draft_errors:
                token = (token + 1) % VOCAB
            history.append(token)
            drafts.append(token)
        return drafts


def alone(request: Request, max_model_len: int) -> dict[int, list[int]]:
    """What each stream of a request must produce, from the definition alone: no batch, no cache, no scheduler."""
    params, prompt = request.params, request.prompt_token_ids
    assert not isinstance(params, BeamSearchParams | PoolingParams)
    outputs = {}
    for stream in range(params.num_sequences):
        tokens, output = list(prompt), []
        while True:
            token = next_token(hash_of(tokens, request.cache_salt), request.seed, stream)
            tokens.append(token)
            output.append(token)
            stops = token in params.stop_token_ids or (token in request.eos_token_ids and not params.ignore_eos)
            if (stops and len(output) >= params.min_tokens) or len(output) == params.max_tokens:
                break
            if len(tokens) == max_model_len:
                break
        outputs[stream] = output
    return outputs


def embedding_alone(request: Request) -> bytes:
    """The embedding of a prompt from the definition alone."""
    prompt, salt = request.prompt_token_ids, request.cache_salt
    assert isinstance(request.params, PoolingParams)
    first = len(prompt) if request.params.pooling == "last" else 1
    return embedding([hash_of(prompt[:n], salt) for n in range(first, len(prompt) + 1)])


def beams_alone(request: Request, max_model_len: int) -> list[tuple[list[int], float]]:
    """The hypotheses of a beam search, best first, by brute force over lists (no early end, no sharing)."""
    params, prompt, salt = request.params, request.prompt_token_ids, request.cache_salt
    assert isinstance(params, BeamSearchParams)
    width, length = params.beam_width, min(params.max_tokens, max_model_len - len(prompt))
    live: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[tuple[list[int], float]] = []
    for step in range(1, length + 1):
        options = []
        for output, total in live:
            entry = candidates(hash_of(prompt + output, salt), VOCAB)
            options += [
                ([*output, t], total + lp) for t, lp in zip(entry.token_ids[1:], entry.logprobs[1:], strict=True)
            ]
        options.sort(key=lambda o: -o[1])
        live = []
        for rank, (output, total) in enumerate(options):
            ends = output[-1] in params.stop_token_ids or (
                output[-1] in request.eos_token_ids and not params.ignore_eos
            )
            if ends:
                if rank < 2 * width:
                    done.append((output, total))
            elif len(live) < width:
                live.append((output, total))
        if step == length:
            done += live
        if not live:
            break
    done.sort(key=lambda h: -h[1] / len(h[0]) ** params.length_penalty)
    return done[:width]


def check_counts(scheduler: Scheduler, hostages: list[int]) -> None:
    """Reference counts equal table entries; free and used blocks partition each pool."""
    kv = scheduler.kv
    tables = [s.table for s in scheduler.sequences.values()]
    for pool, held in (
        (kv.pool, [b for t in tables for b in t.blocks] + hostages),
        (kv.host_pool, [b for t in tables for b in t.host_blocks]),
    ):
        entries = Counter(held)
        for block in range(1, pool.num_blocks + 1):
            assert pool.refs[block] == entries[block], (
                f"block {block}: {pool.refs[block]} refs, {entries[block]} holders"
            )
            assert (block in pool._free) == (entries[block] == 0)
        assert pool.num_free + len(entries) == pool.num_blocks
        assert pool.total_refs == sum(entries.values())
    for s in scheduler.running:
        assert s.in_flight or len(s.table.blocks) == kv.blocks_for(s.planned), "blocks reserved for drafts were kept"
    rows = [s.row for s in scheduler.running]
    assert len(set(rows)) == len(rows) and -1 not in rows
    assert sorted(rows + scheduler._free_rows + scheduler._ended_rows) == list(range(scheduler.config.max_num_seqs))
