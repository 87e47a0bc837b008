"""What every runner promises: paging never shows, a plan runs in its documented order, rows keep what they must.

The ``test_runner.py`` of each data plane imports these tests and says by the fixtures ``new_bench`` and ``ops`` which
runner is meant. Plans are written by hand. Most tests use a model that is all memory and no arithmetic: it writes
tokens and positions into the cache, insists on reading its whole prefix back through the block table, and makes logits
out of a hash of what it read. A wrong block, slot, copy or swap then shows at once. Blocks are handed out in random
order from a cache full of NaN.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.reference.control.params import PoolingParams, SamplingParams
from quire.reference.control.plan import Copy, Fork, NewSeq, SeqPlan, StepPlan, Swap
from quire.reference.sampling import SamplerState, sample, top_logprobs

VOCAB, BLOCK = 50, 4
FOREIGN = VOCAB - 1  # what the model below says when it has read what its sequence did not write
HOST_BLOCKS = 20


class MemoryModel:
    """Two layers of cache, one head of three numbers: (token, position, which forward pass wrote them).

    hidden [T, 1] int64 is a hash of the prefix. All of it is device work that asks nothing of the host, so that it can
    be launched ahead and captured in a CUDA graph.
    """

    def __init__(self, vocab_size=VOCAB):
        self.config = SimpleNamespace(num_layers=2, num_kv_heads=1, head_dim=3, vocab_size=vocab_size)
        self.passes = None  # forward passes so far, on the device

    def forward(self, ids, positions, caches, meta, wanted=None):
        assert len(meta.slot) == len(ids) == len(positions)
        row = torch.arange(len(ids), device=ids.device)
        s = torch.searchsorted(meta.cu_q.long(), row, right=True) - 1  # the sequence of each row
        s = s.clamp(max=len(meta.seq_len) - 1)  # padding may follow
        right = positions == meta.seq_len[s] - (meta.cu_q[s + 1] - row)
        block_size = caches[0][0].shape[1]
        p = torch.arange(meta.block_table.shape[1] * block_size, device=ids.device)
        seen = p <= positions[:, None]
        slots = torch.where(seen, meta.block_table[s][:, p // block_size].long() * block_size + p % block_size, 0)
        if self.passes is None:
            self.passes = torch.zeros_like(ids[:1])
        self.passes += 1
        new = torch.stack([ids, positions, self.passes.expand(len(ids))], 1)[:, None].double()
        hashes = []
        for cache in (cache for pair in caches for cache in pair):
            flat = cache.flatten(0, 1)
            flat[meta.slot.clamp(min=0)] = new  # slot 0 is in the null block
            tokens, at, _ = flat[slots, 0].unbind(-1)
            right &= ((at == p) | ~seen).all(1) & (tokens.gather(1, positions[:, None])[:, 0] == ids)
            hashes.append(torch.where(seen, scramble(tokens.nan_to_num().long(), p), 0).sum(1) & MASK)
        hidden = torch.where(right & (torch.stack(hashes) == hashes[0]).all(0), hashes[0], -1)[:, None]
        return hidden if wanted is None else hidden[wanted]

    def logits(self, hidden):
        token = torch.arange(self.config.vocab_size, device=hidden.device)
        logits = (scramble(hidden, token) >> 30).float() * 2.0**-17  # 0 .. 8, without roundings
        return torch.where(token < self.config.vocab_size - 1, logits, torch.where(hidden < 0, 1000.0, -1000.0))


MASK = 2**50 - 1


def scramble(a, b):
    """Two int64 tensors to numbers below 2^50 that look random; the same on every device."""
    x = (a + 1) * 0x27D4EB2F165667C5 + (b + 1) * 0x165667B19E3779F9
    for shift in (29, 31):
        x = (x ^ ((x >> shift) & MASK)) * 0x1B873593CC9E2D51
    return (x >> 14) & MASK


def hash_of(tokens):
    return int(scramble(torch.tensor(tokens), torch.arange(len(tokens))).sum()) & MASK


def logits_after(tokens):
    return MemoryModel().logits(torch.tensor([[hash_of(tokens)]]))


def entries_after(tokens, token, count, device):
    """The log-probabilities that belong to ``token`` after ``tokens``."""
    return top_logprobs(logits_after(tokens).to(device), torch.tensor([token], device=device), [count])


def alone(prompt, n, params, seed=0, stream=0):
    """The definition of a generation: no cache, no batch, no runner."""
    state, tokens = SamplerState(1, VOCAB), list(prompt)
    state.start(0, params, prompt_len=len(prompt), seed=seed, stream=stream, stop_ids=(0,))
    for _ in range(n):
        length = np.array([len(tokens)])
        tokens += sample(logits_after(tokens), state, np.array([0]), length, np.array([tokens])).tolist()
    return tokens[len(prompt) :]


class Bench:
    """A runner with somebody to hand out its blocks: just enough of a scheduler to write plans by hand.

    make_runner   the runner's class, with what only this data plane takes
    load          takes a device and gives the model; None: a MemoryModel
    """

    def __init__(
        self,
        make_runner: Any,
        load: Any = None,
        *,
        rows: int = 6,
        num_blocks: int = 60,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        max_model_len: int = 64,
        device: str = "cpu",
    ) -> None:
        model = load(device) if load else MemoryModel()
        self.runner = make_runner(
            model, max_num_seqs=rows, max_model_len=max_model_len, block_size=BLOCK, device=device, dtype=dtype
        )
        self.device = torch.device(device)
        self.watched = load is None
        self.rows = getattr(self.runner, "rows", self.runner)  # where tokens and block tables are
        self.runner.allocate_kv(num_blocks, num_host_blocks=HOST_BLOCKS)
        self.fill(range(num_blocks), torch.nan)
        self.free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self.free)
        self.tables: list[list[int]] = [[] for _ in range(rows)]
        self.known: dict[int, int] = {}  # how many tokens each row holds
        self.steps = 0
        self.step(swap_out=[Swap(1, host) for host in range(HOST_BLOCKS)])

    def fill(self, blocks, value):
        for cache in (cache for pair in self.runner.caches for cache in pair):
            cache[list(blocks)] = value
        self.synchronise()

    def synchronise(self):
        """The runner works on a stream of its own; what a test itself does to tensors, it does on another."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tokens(self, row):
        """What the row holds, the token sampled last included."""
        return self.rows.tokens[row, : self.known[row]].tolist()

    def seq(self, row, start, n=1, samples=True, write=True, pools=False):
        table = self.tables[row]
        new = [self.free.pop() for _ in range(-(-(start + n) // BLOCK) - len(table))]
        table += new
        return SeqPlan(row, row, 0, start, n, 0, new, samples, write, pools)

    def launch(self, seqs=(), masks=None, **changes):
        for row in changes.get("ends", []):
            self.free += self.tables[row]
        for row in [*changes.get("ends", []), *(new.row for new in changes.get("starts", []))]:
            self.tables[row] = []
        self.steps += 1
        plan = StepPlan(self.steps, seqs=[self.seq(*s) if isinstance(s, tuple) else s for s in seqs], **changes)
        self.known |= {new.row: len(new.token_ids) for new in plan.starts}
        self.known |= {fork.row: fork.length + (fork.token is not None) for fork in plan.forks}
        self.known |= {s.row: s.start + s.n + 1 for s in plan.seqs if s.samples}
        self.runner.forward(plan)
        return self.runner.sample(masks)

    def step(self, seqs=(), masks=None, **changes):
        result = self.launch(seqs, masks, **changes).wait()
        assert result.step == self.steps
        assert not self.watched or [FOREIGN] not in result.tokens, "the model has read what its sequence did not write"
        return result

    def start(self, row, prompt, params=None, chunks=None, seed=0, stream=0, **changes):
        """Start a sequence and compute its prompt in ``chunks`` (default: whole). Returns the results of all steps."""
        new = new_seq(row, prompt, params, seed=seed, stream=stream)
        results, done = [], 0
        for n in chunks or [len(prompt)]:
            changes = {"starts": [new], **changes} if done == 0 else {}
            results.append(self.step([(row, done, n, done + n == len(prompt))], **changes))
            done += n
        return results

    def decode(self, row, n):
        """n single steps of one row; returns the tokens."""
        return [token for _ in range(n) for token in self.step([(row, self.known[row] - 1)]).tokens[0]]

    def embed(self, prompts, params, chunk):
        """Each prompt in chunks of ``chunk`` tokens and a few more, all of them side by side."""
        done, vectors = [0] * len(prompts), {}
        starts = [new_seq(row, prompt, params) for row, prompt in enumerate(prompts)]
        while len(vectors) < len(prompts):
            seqs = []  # row, start, n, samples, write, pools
            for row, prompt in enumerate(prompts):
                n = min(chunk + row, len(prompt) - done[row])
                if n > 0:
                    seqs.append((row, done[row], n, False, True, done[row] + n == len(prompt)))
                    done[row] += n
            result = self.step(seqs, starts=starts)
            starts = []
            assert result.tokens == [[]] * len(seqs)
            assert set(result.pooled) == {i for i, seq in enumerate(seqs) if seq[-1]}
            vectors |= {seqs[i][0]: np.frombuffer(v, "<f4") for i, v in result.pooled.items()}
        return [vectors[row] for row in range(len(prompts))]


def new_seq(row, tokens, params=None, prompt_len=None, seed=0, stream=0):
    params = params or SamplingParams(temperature=0)
    return NewSeq(row, row, list(tokens), prompt_len or len(tokens), params, seed, stream, (0,))


GREEDY = SamplingParams(temperature=0)
WARM = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2, min_tokens=4)
DRAWN = SamplingParams(temperature=0.8, min_tokens=4)  # for many examples: interpreted, top-p and penalties are slow
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14)


# ------------------------------------------------------------------------------------------------------------ forward


@given(batch=st.lists(st.tuples(prompts, st.integers(0, 2**64 - 1)), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=8)
def test_a_batch_in_shuffled_blocks_equals_each_sequence_alone(new_bench, batch, seed):
    bench = new_bench(seed=seed)
    news = [new_seq(row, prompt, DRAWN, seed=s) for row, (prompt, s) in enumerate(batch)]
    result = bench.step([(row, 0, len(prompt)) for row, (prompt, _) in enumerate(batch)], starts=news)
    gained = [list(tokens) for tokens in result.tokens]
    for i in range(8):
        result = bench.step([(row, len(prompt) + i) for row, (prompt, _) in enumerate(batch)])
        for g, tokens in zip(gained, result.tokens):
            g += tokens
    assert gained == [alone(prompt, 9, DRAWN, s) for prompt, s in batch]


@given(prompt=prompts, data=st.data())
@settings(max_examples=25)
def test_a_prompt_in_chunks_equals_the_whole(new_bench, prompt, data):
    chunks, left = [], len(prompt)
    while left:
        chunks.append(data.draw(st.integers(1, left)))
        left -= chunks[-1]
    params = SamplingParams(temperature=0, logprobs=2, prompt_logprobs=3)
    whole, bench = new_bench().start(0, prompt, params)[0], new_bench(seed=1)
    results = bench.start(0, prompt, params, chunks)
    assert [r.tokens for r in results] == [[[]]] * (len(chunks) - 1) + [whole.tokens]
    assert results[-1].logprobs == whole.logprobs
    first, entries = whole.prompt_logprobs.get(0, (1, []))
    pieces = [r.prompt_logprobs[0] for r in results if r.prompt_logprobs]
    assert [entry for _, piece in pieces for entry in piece] == entries
    expected_first = 1
    for first, piece in pieces:
        assert first == expected_first and piece
        expected_first += len(piece)
    assert expected_first == len(prompt)


def test_prompt_chunks_and_decodes_in_one_step(new_bench):
    a, b = [5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]
    bench = new_bench()
    tokens = bench.start(0, a, WARM, seed=3)[0].tokens[0]
    starts = [new_seq(1, b, WARM, seed=4)]
    tokens += bench.step([(1, 0, 6, False), (0, 3)], starts=starts).tokens[1]
    result = bench.step([(0, 4), (1, 6, 3)])
    assert tokens + result.tokens[0] == alone(a, 3, WARM, 3)
    assert result.tokens[1] == alone(b, 1, WARM, 4)


def test_run_ahead(new_bench):
    """Plans by lengths alone: every step is launched before anybody looks at the result of the one before."""
    bench, prompt = new_bench(), [4, 4, 2]
    pending = [bench.launch([(0, 0, 3)], starts=[new_seq(0, prompt, WARM)])]
    pending += [bench.launch([(0, 3 + i)]) for i in range(6)]
    assert [p.wait().tokens[0][0] for p in pending] == alone(prompt, 7, WARM)


def test_nobody_waits_until_all_is_launched(new_bench):
    """Prompts in chunks, a fork and its copy, a row that ends and is used again; results are asked for backwards."""
    bench, params = new_bench(rows=3), SamplingParams(temperature=0.8, logprobs=1, prompt_logprobs=0)
    a, b, c = [1, 2, 3, 4, 5, 6], [7] * 9, [8, 9]
    launched = []

    def launch(names, seqs, **changes):
        launched.append((names, bench.launch(seqs, **changes)))

    launch("a", [(0, 0, 6)], starts=[new_seq(0, a, params, seed=1)])
    launch("ab", [(0, 6), (1, 0, 5, False)], starts=[new_seq(1, b, params, seed=2)])
    launch("ba", [(1, 5, 4), (0, 7)])
    bench.tables[2] = list(bench.tables[1])
    copies = [copy_on_write(bench, 2, 2)]
    launch("aBb", [(0, 8), (2, 8), (1, 9)], forks=[Fork(2, 1, 2, 9, 5, params)], copies=copies)
    for i in range(3):
        launch("bBa", [(1, 10 + i), (2, 9 + i), (0, 9 + i)])
    launch("bc", [(1, 13), (0, 0, 2)], ends=[0], starts=[new_seq(0, c, params, seed=3)])
    for i in range(3):
        launch("cB", [(0, 2 + i), (2, 12 + i)])
    got = {name: [] for name in "abBc"}
    for names, pending in launched[::-1]:
        result = pending.wait()
        for i, (name, tokens) in enumerate(zip(names, result.tokens)):
            got[name] = tokens + got[name]
            assert [entry.token_ids[0] for entry in result.logprobs.get(i, [])] == tokens
    assert got["a"] == alone(a, 7, params, 1) and got["c"] == alone(c, 4, params, 3)
    assert got["b"] == alone(b, 6, params, 2) and got["B"] == alone(b, 7, params, 2, stream=5)


def test_a_row_is_used_again(new_bench):
    bench = new_bench(rows=1)
    bench.start(0, [1] * 13, SamplingParams(temperature=0, logit_bias={7: 100}))
    assert bench.decode(0, 3) == [7, 7, 7]
    tokens = bench.start(0, [2, 3], WARM, seed=9, ends=[0])[0].tokens[0]
    assert tokens + bench.decode(0, 3) == alone([2, 3], 4, WARM, 9)


def test_a_step_that_only_ends_rows(new_bench):
    bench = new_bench()
    bench.start(0, [1])
    assert bench.step(ends=[0]).tokens == []


def test_the_last_position_of_the_context(new_bench):
    bench = new_bench(max_model_len=8)
    assert bench.start(0, [1] * 7)[0].tokens[0] + bench.decode(0, 1) == alone([1] * 7, 2, GREEDY)


def test_a_preempted_sequence_comes_back_with_its_tokens(new_bench):
    """It is told what it had; positions, and with them the noise and the penalties, go on where they were."""
    bench, prompt = new_bench(), [3, 1, 4, 1, 5]
    tokens = bench.start(0, prompt, WARM, seed=2)[0].tokens[0] + bench.decode(0, 3)
    back = new_seq(4, prompt + tokens, WARM, prompt_len=5, seed=2)
    tokens += bench.step([(4, 0, 9)], ends=[0], starts=[back]).tokens[0] + bench.decode(4, 2)
    assert tokens == alone(prompt, 7, WARM, 2)


def test_a_prompt_found_in_the_cache_computes_one_position_without_writing(new_bench):
    bench, prompt = new_bench(), [9, 8, 7, 6, 5, 4, 3, 2]
    first = bench.start(0, prompt)[0].tokens
    shared = bench.tables[0][:2]
    bench.tables[1] = list(shared)
    before = bench.runner.caches[0][0].clone()
    bench.synchronise()
    plan = SeqPlan(1, 1, 0, 7, 1, 0, shared, samples=True, write=False)
    assert bench.step([plan], starts=[new_seq(1, prompt)]).tokens == first
    after = bench.runner.caches[0][0]
    assert torch.equal(after[1:].nan_to_num(), before[1:].nan_to_num()), "only the null block may change"


# -------------------------------------------------------------------------------------------------------------- forks


def copy_on_write(bench, row, index):
    """Give ``row`` its own copy of a shared block."""
    source, copy = bench.tables[row][index], bench.free.pop()
    bench.tables[row][index] = copy
    return Copy(source, copy, row, index)


@pytest.mark.parametrize("length", [5, 8])
def test_parallel_sampling_shares_the_prompt_and_copies_its_tail(new_bench, length):
    """Three siblings differ by stream. Their first tokens need logits only; who writes first copies the shared tail."""
    bench, prompt = new_bench(), list(range(length))
    params = SamplingParams(temperature=1.5, presence_penalty=0.5)
    bench.step([(0, 0, length, False)], starts=[new_seq(0, prompt, params, seed=5)])
    for row in (1, 2):
        bench.tables[row] = list(bench.tables[0])
    gained = bench.step(
        [(row, length - 1, 1, True, False) for row in range(3)],
        forks=[Fork(row, 0, row, length, row, params) for row in (1, 2)],
    ).tokens
    copies = [copy_on_write(bench, row, 1) for row in (1, 2)] if length % BLOCK else []
    for i in range(6):
        result = bench.step([(row, length + i) for row in range(3)], copies=copies if i == 0 else [])
        gained = [g + t for g, t in zip(gained, result.tokens)]
    assert gained == [alone(prompt, 7, params, 5, stream) for stream in range(3)]
    assert len({tuple(g) for g in gained}) == 3


def test_beams_fork_with_a_token_and_continue_in_place(new_bench):
    """Row 0 sampled something at position 6; the search puts 11 there instead, and 12 into a child."""
    bench, prompt = new_bench(), [1, 2, 3, 4, 5, 6]
    bench.start(0, prompt)
    bench.tables[3] = bench.tables[0][:2]
    forks = [Fork(3, 0, 3, 6, 0, GREEDY, token=12), Fork(0, 0, 0, 6, 0, GREEDY, token=11)]
    copies = [copy_on_write(bench, 3, 1)]
    result = bench.step([(0, 6), (3, 6)], forks=forks, copies=copies)
    assert result.tokens == [alone([*prompt, 11], 1, GREEDY), alone([*prompt, 12], 1, GREEDY)]
    assert [bench.tokens(row)[:7] for row in (0, 3)] == [[*prompt, 11], [*prompt, 12]]
    assert bench.rows.sampler.prompt_len[3] == 6
    assert bench.decode(3, 2) == alone([*prompt, 12], 3, GREEDY)[1:]


# --------------------------------------------------------------------------------------------------------------- swaps


def test_a_sequence_moves_to_the_host_and_back_into_other_blocks(new_bench):
    bench, prompt = new_bench(num_blocks=12), [7, 6, 5, 4, 3]
    tokens = bench.start(0, prompt, WARM)[0].tokens[0] + bench.decode(0, 2)
    out = [Swap(device, host) for device, host in zip(bench.tables[0], (3, 0))]
    # Another sequence takes the very blocks, in the same plan.
    bench.free += bench.tables[0]
    bench.tables[0] = []
    other = list(range(20, 40))
    starts = [new_seq(1, other)]
    assert bench.step([(1, 0, 20)], starts=starts, swap_out=out, ends=[0]).tokens == [alone(other, 1, GREEDY)]
    back = [bench.free.pop() for _ in range(2)]
    bench.tables[0] = list(back)
    plan = SeqPlan(0, 0, 1, 7, 1, 0, back, samples=True)
    starts = [new_seq(0, prompt + tokens, WARM, prompt_len=5)]
    swap_in = [Swap(device, swap.host) for device, swap in zip(back, out)]
    tokens += bench.step([plan], starts=starts, swap_in=swap_in).tokens[0]
    assert tokens + bench.decode(0, 2) == alone(prompt, 6, WARM)


def test_swap_out_comes_before_copies_and_copies_before_swap_in(new_bench):
    """Block 1 leaves for the host, is overwritten by a copy, and comes back as block 3."""
    bench = new_bench(num_blocks=5)
    bench.fill([1], 1)
    bench.fill([2], 2)
    bench.step(swap_out=[Swap(1, 0)], copies=[Copy(2, 1, 0, 0)], swap_in=[Swap(3, 0)])
    for cache in (c for pair in bench.runner.caches for c in pair):
        assert cache[1:4, 0, 0, 0].tolist() == [2, 2, 1]
    assert bench.rows.block_table[0, 0] == 1


# ------------------------------------------------------------------------------------------------- masks and logprobs


def test_masks_belong_to_entries_of_the_plan(new_bench):
    bench = new_bench()
    only = np.zeros(VOCAB, bool)
    only[17] = True
    news = [new_seq(row, [row + 1, 2, 3]) for row in range(3)]
    result = bench.step([(0, 0, 2, False), (1, 0, 3), (2, 0, 3)], masks={2: torch.from_numpy(only)}, starts=news)
    assert result.tokens == [[], alone([2, 2, 3], 1, GREEDY), [17]]
    with pytest.raises(ValueError, match=r"masks for \[0\]"):
        bench.step([(0, 2, 1, False), (1, 3)], masks={0: only})


def test_logprobs_are_of_the_raw_logits_and_only_where_asked(new_bench):
    bench = new_bench()
    params = SamplingParams(temperature=0.5, logprobs=3, logit_bias={4: 100.0})
    news = [new_seq(0, [1, 2]), new_seq(1, [1, 2, 3], params)]
    result = bench.step([(0, 0, 2), (1, 0, 3)], starts=news)
    assert result.tokens[1] == [4] and list(result.logprobs) == [1]
    assert result.logprobs[1] == entries_after([1, 2, 3], 4, 3, bench.device)


def test_prompt_logprobs_tell_what_the_prompt_so_far_said_of_its_next_token(new_bench):
    prompt = [5, 9, 2, 2]
    bench = new_bench()
    first, entries = bench.start(0, prompt, SamplingParams(prompt_logprobs=2))[0].prompt_logprobs[0]
    assert first == 1
    for p, entry in zip(range(1, 4), entries):
        assert [entry] == entries_after(prompt[:p], prompt[p], 2, bench.device)
    assert len(entries) == 3


def test_decodes_bring_no_prompt_logprobs(new_bench):
    bench = new_bench()
    bench.start(0, [5, 9, 2], SamplingParams(prompt_logprobs=0))
    assert bench.step([(0, 3)]).prompt_logprobs == {}


# ------------------------------------------------------------------------------------------------------------- pooling


def test_a_row_that_pooled_samples_again_and_the_other_way_round(new_bench) -> None:
    """Rows are reused: nothing of an embedding stays, nor the prompt log-probabilities of who was there before."""
    asked, last = SamplingParams(temperature=0, prompt_logprobs=0), PoolingParams(pooling="last", normalize=False)
    bench = new_bench()
    (first,) = bench.start(0, [1, 2, 3], asked)
    assert first.prompt_logprobs and not first.pooled
    prompt = [4, 5, 6, 7, 8, 9, 10]
    begun = bench.step([(0, 0, 4, False)], ends=[0], starts=[new_seq(0, prompt, last)])
    ended = bench.step([(0, 4, 3, False, True, True)])
    assert begun.pooled == begun.prompt_logprobs == ended.prompt_logprobs == {}
    assert np.frombuffer(ended.pooled[0], "<f4") == np.float32(hash_of(prompt))
    (again,) = bench.start(0, [1, 2, 3], asked, ends=[0])
    assert again.tokens == first.tokens and again.prompt_logprobs == first.prompt_logprobs and not again.pooled


def test_embeddings_of_prompts_side_by_side_in_chunks(new_bench):
    prompts = [[3], [1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9]]
    params = PoolingParams(normalize=False)
    vectors = new_bench().embed(prompts, params, 2)
    for prompt, vector in zip(prompts, vectors):
        hashes = [hash_of(prompt[: n + 1]) for n in range(len(prompt))]
        assert vector == pytest.approx([sum(hashes) / len(hashes)], rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- real model


def test_a_real_model_writes_what_transformers_writes(new_bench, ops, tmp_path: Path):
    """A tiny random Llama: chunked prompts, mixed batch, a fork, a swap, blocks of NaN; greedy tokens as generate()."""
    import transformers

    from quire.reference.models import load_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=None, bos_token_id=None, pad_token_id=None,
        initializer_range=0.5,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    bench = new_bench(lambda device: load_model(tmp_path, dtype="float32", device=device, ops=ops), dtype=torch.float32)
    batch = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [42], [90, 80, 70, 60, 50]]
    news = [new_seq(row, prompt) for row, prompt in enumerate(batch)]
    bench.step([(0, 0, 5, False), (1, 0, 1), (2, 0, 2, False)], starts=news)
    bench.step([(1, 1), (0, 5, 4), (2, 2, 3)])
    for i in range(4):
        bench.step([(0, 9 + i), (2, 5 + i), (1, 2 + i)])
    # Row 3 goes on from row 0 (13 tokens, 14 with the one that is not computed yet); row 2 moves to the host and back.
    bench.tables[3] = list(bench.tables[0])
    last = bench.tokens(0)[13]
    out = [Swap(device, host + 1) for host, device in enumerate(bench.tables[2])]
    tokens, copies = bench.tokens(2), [copy_on_write(bench, 3, 3)]
    forks = [Fork(3, 0, 3, 13, 0, GREEDY, token=last)]
    bench.step([(3, 13), (1, 6)], forks=forks, copies=copies, swap_out=out, ends=[2])
    back = [bench.free.pop(0) for _ in out]
    bench.tables[2] = list(back)
    plan = SeqPlan(2, 2, 0, 9, 1, 0, back, samples=True)
    starts = [new_seq(2, tokens, prompt_len=5)]
    bench.step([(0, 13), plan], starts=starts, swap_in=[Swap(d, s.host) for d, s in zip(back, out)])
    for i in range(3):
        bench.step([(0, 14 + i), (3, 14 + i), (2, 10 + i), (1, 7 + i)])
    for row, prompt in enumerate([*batch, batch[0]]):
        got = bench.tokens(row)
        want = theirs.generate(torch.tensor([prompt]), max_new_tokens=len(got) - len(prompt), do_sample=False)
        assert got == want[0].tolist() and len(got) > len(prompt) + 7
