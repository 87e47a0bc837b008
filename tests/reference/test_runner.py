"""The runner's promises: paging never shows, a plan runs in its documented order, rows keep what they must.

Most tests use a model that is all memory and no arithmetic: it writes (token, position) into the cache, insists on
reading its whole prefix back through the block table, and makes logits out of a hash of what it read. A wrong block,
slot, copy or swap then fails at once. Blocks are handed out in random order from a cache full of NaN.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quire.reference.ops as ops
from quire.reference.control import philox
from quire.reference.control.params import SamplingParams
from quire.reference.control.plan import Copy, Fork, NewSeq, SeqPlan, StepPlan, Swap
from quire.reference.runner import ModelRunner
from quire.reference.sampling import SamplerState, sample, top_logprobs

VOCAB, BLOCK = 50, 4


class MemoryModel:
    """Two layers of cache, one head of two numbers: (token, position). hidden [T, 1] is a hash of the prefix."""

    class config:
        num_layers, num_kv_heads, head_dim, vocab_size = 2, 1, 2, VOCAB

    def forward(self, ids, positions, caches, meta):
        assert len(meta.slot) == len(ids) == len(positions) == int(meta.cu_q[-1])
        new = torch.stack([ids, positions], 1)[:, None].double()
        hidden = torch.zeros(len(ids), 1, dtype=torch.float64)
        for k_cache, v_cache in caches:
            where = meta.slot.clamp(min=0)
            for cache in (k_cache, v_cache):
                cache.flatten(0, 1)[where] = new
                for s, end in enumerate(meta.seq_len.tolist()):
                    first, last = int(meta.cu_q[s]), int(meta.cu_q[s + 1])
                    for t, position in zip(range(first, last), range(end - last + first, end)):
                        assert positions[t] == position
                        prefix = torch.arange(position + 1)
                        slots = meta.block_table[s][prefix // BLOCK] * BLOCK + prefix % BLOCK
                        cells = cache.flatten(0, 1)[slots, 0]
                        assert torch.equal(cells[:, 1], prefix.double()), "a foreign cell"
                        assert cells[-1, 0] == ids[t]
                        hidden[t] = hash_of(cells[:, 0].long().tolist())
        return hidden

    def logits(self, hidden):
        seeds = hidden[:, 0].numpy().astype(np.uint64)
        return torch.from_numpy(philox.gumbel_rows(seeds, 0, 0, VOCAB))


def hash_of(tokens):
    value = 1
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % 2**50
    return value


def logits_after(tokens):
    return MemoryModel().logits(torch.tensor([[float(hash_of(tokens))]], dtype=torch.float64))


def alone(prompt, n, params, seed=0, stream=0):
    """The definition of a generation: no cache, no batch, no runner."""
    state, tokens = SamplerState(1, VOCAB), list(prompt)
    state.start(0, params, prompt_len=len(prompt), seed=seed, stream=stream, stop_ids=(0,))
    for _ in range(n):
        length = np.array([len(tokens)])
        tokens += sample(logits_after(tokens), state, np.array([0]), length, np.array([tokens])).tolist()
    return tokens[len(prompt) :]


class Bench:
    """A runner with somebody to hand out its blocks: just enough of a scheduler to write plans by hand."""

    def __init__(self, model=None, rows=6, num_blocks=60, seed=0, dtype=torch.float64, max_model_len=64, device="cpu"):
        self.runner = ModelRunner(
            model or MemoryModel(),
            max_num_seqs=rows,
            max_model_len=max_model_len,
            block_size=BLOCK,
            device=device,
            dtype=dtype,
        )
        self.runner.allocate_kv(num_blocks, num_host_blocks=20)
        for caches in (self.runner.caches, self.runner.host_caches):
            for pair in caches:
                for cache in pair:
                    cache.fill_(torch.nan)
        self.free = list(range(1, num_blocks))
        random.Random(seed).shuffle(self.free)
        self.tables = [[] for _ in range(rows)]
        self.steps = 0

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
        self.runner.forward(plan)
        return self.runner.sample(masks)

    def step(self, seqs=(), masks=None, **changes):
        result = self.launch(seqs, masks, **changes).wait()
        assert result.step == self.steps
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
        out = []
        for _ in range(n):
            out += self.step([(row, int(self.runner.row_len[row]) - 1)]).tokens[0]
        return out


def new_seq(row, tokens, params=None, prompt_len=None, seed=0, stream=0):
    params = params or SamplingParams(temperature=0)
    return NewSeq(row, row, list(tokens), prompt_len or len(tokens), params, seed, stream, (0,))


GREEDY = SamplingParams(temperature=0)
WARM = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2, min_tokens=4)
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=14)


# ------------------------------------------------------------------------------------------------------------ forward


@given(batch=st.lists(st.tuples(prompts, st.integers(0, 2**64 - 1)), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_batch_in_shuffled_blocks_equals_each_sequence_alone(batch, seed):
    bench = Bench(seed=seed)
    news = [new_seq(row, prompt, WARM, seed=s) for row, (prompt, s) in enumerate(batch)]
    result = bench.step([(row, 0, len(prompt)) for row, (prompt, _) in enumerate(batch)], starts=news)
    gained = [list(tokens) for tokens in result.tokens]
    for i in range(8):
        result = bench.step([(row, len(prompt) + i) for row, (prompt, _) in enumerate(batch)])
        for g, tokens in zip(gained, result.tokens):
            g += tokens
    assert gained == [alone(prompt, 9, WARM, s) for prompt, s in batch]


@given(prompt=prompts, data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_prompt_in_chunks_equals_the_whole(prompt, data):
    chunks, left = [], len(prompt)
    while left:
        chunks.append(data.draw(st.integers(1, left)))
        left -= chunks[-1]
    params = SamplingParams(temperature=0, logprobs=2, prompt_logprobs=3)
    whole, bench = Bench().start(0, prompt, params)[0], Bench(seed=1)
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


def test_prompt_chunks_and_decodes_in_one_step():
    a, b = [5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8, 9]
    bench = Bench()
    tokens = bench.start(0, a, WARM, seed=3)[0].tokens[0]
    starts = [new_seq(1, b, WARM, seed=4)]
    tokens += bench.step([(1, 0, 6, False), (0, 3)], starts=starts).tokens[1]
    result = bench.step([(0, 4), (1, 6, 3)])
    assert tokens + result.tokens[0] == alone(a, 3, WARM, 3)
    assert result.tokens[1] == alone(b, 1, WARM, 4)


def test_run_ahead():
    """Plans by lengths alone: every step is launched before anybody looks at the result of the one before."""
    bench, prompt = Bench(), [4, 4, 2]
    pending = [bench.launch([(0, 0, 3)], starts=[new_seq(0, prompt, WARM)])]
    pending += [bench.launch([(0, 3 + i)]) for i in range(6)]
    assert [p.wait().tokens[0][0] for p in pending] == alone(prompt, 7, WARM)


def test_a_row_is_used_again():
    bench = Bench(rows=1)
    bench.start(0, [1] * 13, SamplingParams(temperature=0, logit_bias={7: 100}))
    assert bench.decode(0, 3) == [7, 7, 7]
    tokens = bench.start(0, [2, 3], WARM, seed=9, ends=[0])[0].tokens[0]
    assert tokens + bench.decode(0, 3) == alone([2, 3], 4, WARM, 9)


def test_a_step_that_only_ends_rows():
    bench = Bench()
    bench.start(0, [1])
    assert bench.step(ends=[0]).tokens == []


def test_the_last_position_of_the_context():
    bench = Bench(max_model_len=8)
    assert bench.start(0, [1] * 7)[0].tokens[0] + bench.decode(0, 1) == alone([1] * 7, 2, GREEDY)


def test_a_preempted_sequence_comes_back_with_its_tokens():
    """It is told what it had; positions, and with them the noise and the penalties, go on where they were."""
    bench, prompt = Bench(), [3, 1, 4, 1, 5]
    tokens = bench.start(0, prompt, WARM, seed=2)[0].tokens[0] + bench.decode(0, 3)
    back = new_seq(4, prompt + tokens, WARM, prompt_len=5, seed=2)
    tokens += bench.step([(4, 0, 9)], ends=[0], starts=[back]).tokens[0] + bench.decode(4, 2)
    assert tokens == alone(prompt, 7, WARM, 2)


def test_a_prompt_found_in_the_cache_computes_one_position_without_writing():
    bench, prompt = Bench(), [9, 8, 7, 6, 5, 4, 3, 2]
    first = bench.start(0, prompt)[0].tokens
    shared = bench.tables[0][:2]
    bench.tables[1] = list(shared)
    before = bench.runner.caches[0][0].clone()
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
def test_parallel_sampling_shares_the_prompt_and_copies_its_tail(length):
    """Three siblings differ by stream. Their first tokens need logits only; who writes first copies the shared tail."""
    bench, prompt = Bench(), list(range(length))
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


def test_beams_fork_with_a_token_and_continue_in_place():
    """Row 0 sampled something at position 6; the search puts 11 there instead, and 12 into a child."""
    bench, prompt = Bench(), [1, 2, 3, 4, 5, 6]
    bench.start(0, prompt)
    bench.tables[3] = bench.tables[0][:2]
    forks = [Fork(3, 0, 3, 6, 0, GREEDY, token=12), Fork(0, 0, 0, 6, 0, GREEDY, token=11)]
    copies = [copy_on_write(bench, 3, 1)]
    result = bench.step([(0, 6), (3, 6)], forks=forks, copies=copies)
    assert result.tokens == [alone([*prompt, 11], 1, GREEDY), alone([*prompt, 12], 1, GREEDY)]
    assert bench.runner.tokens[0, :7].tolist() == [*prompt, 11]
    assert bench.runner.tokens[3, :7].tolist() == [*prompt, 12]
    assert bench.runner.sampler.prompt_len[3] == 6
    assert bench.decode(3, 2) == alone([*prompt, 12], 3, GREEDY)[1:]


# --------------------------------------------------------------------------------------------------------------- swaps


def test_a_sequence_moves_to_the_host_and_back_into_other_blocks():
    bench, prompt = Bench(num_blocks=12), [7, 6, 5, 4, 3]
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


def test_swap_out_comes_before_copies_and_copies_before_swap_in():
    """Block 1 leaves for the host, is overwritten by a copy, and comes back as block 3."""
    bench = Bench(num_blocks=5)
    for cache in (c for pair in bench.runner.caches for c in pair):
        cache[1], cache[2] = 1, 2
    bench.step(swap_out=[Swap(1, 0)], copies=[Copy(2, 1, 0, 0)], swap_in=[Swap(3, 0)])
    for cache in (c for pair in bench.runner.caches for c in pair):
        assert cache[1:4, 0, 0, 0].tolist() == [2, 2, 1]
    assert bench.runner.block_table[0, 0] == 1


# ------------------------------------------------------------------------------------------------- masks and logprobs


def test_masks_belong_to_entries_of_the_plan():
    bench = Bench()
    only = np.zeros(VOCAB, bool)
    only[17] = True
    news = [new_seq(row, [row + 1, 2, 3]) for row in range(3)]
    result = bench.step([(0, 0, 2, False), (1, 0, 3), (2, 0, 3)], masks={2: torch.from_numpy(only)}, starts=news)
    assert result.tokens == [[], alone([2, 2, 3], 1, GREEDY), [17]]
    with pytest.raises(ValueError, match=r"masks for \[0\]"):
        bench.step([(0, 2, 1, False), (1, 3)], masks={0: only})


def test_logprobs_are_of_the_raw_logits_and_only_where_asked():
    bench = Bench()
    params = SamplingParams(temperature=0.5, logprobs=3, logit_bias={4: 100.0})
    news = [new_seq(0, [1, 2]), new_seq(1, [1, 2, 3], params)]
    result = bench.step([(0, 0, 2), (1, 0, 3)], starts=news)
    assert result.tokens[1] == [4] and list(result.logprobs) == [1]
    assert result.logprobs[1] == top_logprobs(logits_after([1, 2, 3]), torch.tensor([4]), [3])


def test_prompt_logprobs_tell_what_the_prompt_so_far_said_of_its_next_token():
    prompt = [5, 9, 2, 2]
    first, entries = Bench().start(0, prompt, SamplingParams(prompt_logprobs=2))[0].prompt_logprobs[0]
    assert first == 1
    for p, entry in zip(range(1, 4), entries):
        assert entry == top_logprobs(logits_after(prompt[:p]), torch.tensor([prompt[p]]), [2])[0]
    assert len(entries) == 3


def test_decodes_bring_no_prompt_logprobs():
    bench = Bench()
    bench.start(0, [5, 9, 2], SamplingParams(prompt_logprobs=0))
    assert bench.step([(0, 3)]).prompt_logprobs == {}


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_what_a_plan_may_not_ask():
    bench = Bench()
    bench.start(0, [1, 2, 3])
    with pytest.raises(NotImplementedError, match="drafted"):
        bench.step([SeqPlan(0, 0, 0, 3, 2, 1, [], True)])
    bench.decode(0, 1)
    with pytest.raises(AssertionError, match="lack blocks"):
        bench.step([SeqPlan(0, 0, 0, 4, 1, 0, [], True)])
    with pytest.raises(AssertionError, match="tokens that the rows do not have"):
        bench.step([(0, 4, 2)])


# ---------------------------------------------------------------------------------------------------------- real model


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_real_model_writes_what_transformers_writes(tmp_path, device):
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
    model = load_model(tmp_path, dtype="float32", device=device, ops=ops)
    bench = Bench(model, dtype=torch.float32, device=device)
    batch = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [42], [90, 80, 70, 60, 50]]
    news = [new_seq(row, prompt) for row, prompt in enumerate(batch)]
    bench.step([(0, 0, 5, False), (1, 0, 1), (2, 0, 2, False)], starts=news)
    bench.step([(1, 1), (0, 5, 4), (2, 2, 3)])
    for i in range(4):
        bench.step([(0, 9 + i), (2, 5 + i), (1, 2 + i)])
    # Row 3 goes on from row 0 (13 tokens, 14 with the one that is not computed yet); row 2 moves to the host and back.
    bench.tables[3] = list(bench.tables[0])
    last = int(bench.runner.tokens[0, 13])
    out = [Swap(device, host + 1) for host, device in enumerate(bench.tables[2])]
    tokens, copies = bench.runner.tokens[2, :10].tolist(), [copy_on_write(bench, 3, 3)]
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
        got = bench.runner.tokens[row, : bench.runner.row_len[row]].tolist()
        want = theirs.generate(torch.tensor([prompt]), max_new_tokens=len(got) - len(prompt), do_sample=False)
        assert got == want[0].tolist() and len(got) > len(prompt) + 7
