"""The whole engine in 150 lines: paged KV cache, continuous batching, chunked prefill, prefix sharing, preemption.

It reads the same weights as quire and writes the same tokens; notebook 12 takes it apart, a test holds it against the
real engine. What it leaves out is speed, copy-on-write and everything that checks what a user asks for. Random numbers
are quire's: one function, which says what noise a token gets at a place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from quire.reference.control.philox import gumbel_rows


@dataclass(eq=False)
class Sequence:
    """One request: what it asks for, its tokens so far, and where the K/V of the first ``computed`` of them lies."""

    number: int
    tokens: list[int]
    max_len: int
    temperature: float
    seed: int
    table: list[int] = field(default_factory=list)
    computed: int = 0
    output: list[int] = field(default_factory=list)


class TinyEngine:
    """Blocks are handed out from ``free``, least recently used first; ``refs`` counts the tables that name a block."""

    def __init__(self, folder: Path | str, num_blocks: int = 256, block_size: int = 16, budget: int = 64) -> None:
        self.model = TinyLlama(Path(folder), num_blocks, block_size)
        self.num_blocks, self.block_size, self.budget = num_blocks, block_size, budget
        self.refs, self.free = [0] * num_blocks, dict.fromkeys(range(num_blocks))
        self.block_of, self.name_of = {}, {}  # a text's beginning -> the block that holds its end; and back
        self.waiting, self.running = [], []
        self.added = self.preempted = self.hits = 0

    def add(self, prompt: list[int], max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Sequence:
        """Accept a request that fits the cache when it is alone: then it can always be finished."""
        assert prompt and -(-(len(prompt) + max_tokens) // self.block_size) <= self.num_blocks, "it would never fit"
        self.waiting.append(Sequence(self.added, list(prompt), len(prompt) + max_tokens, temperature, seed))
        self.added += 1
        return self.waiting[-1]

    def order(self, waiting: list[Sequence]) -> list[Sequence]:
        """Who is admitted first: who came first, those that were preempted included."""
        return sorted(waiting, key=lambda seq: seq.number)

    def run(self) -> None:
        while self.waiting or self.running:
            self.step()

    # --- scheduling: a budget of tokens, running sequences first --------------------------------------------------

    def step(self) -> None:
        """Plan, compute, sample. A prompt chunk and a decode are the same thing: tokens that are not computed yet."""
        budget, plan, preempted = self.budget, [], self.preempted
        for seq in list(self.running):
            n = min(len(seq.tokens) - seq.computed, budget)
            while seq in self.running and not self.reserve(seq, seq.computed + n):
                self.preempt(self.running[-1])
            if seq in self.running and n:
                plan.append((seq, n))
                budget -= n
        self.waiting = self.order(self.waiting)
        while self.waiting and budget and self.preempted == preempted:  # else the blocks are for who lacked them
            seq = self.waiting[0]
            self.match(seq)
            n = min(len(seq.tokens) - seq.computed, budget)
            if not self.reserve(seq, seq.computed + n):
                self.release(seq)
                break
            self.running.append(self.waiting.pop(0))
            plan.append((seq, n))
            budget -= n
        logits = self.model.forward([(seq.tokens, seq.table, seq.computed, n) for seq, n in plan])
        for (seq, n), scores in zip(plan, logits):
            seq.computed += n
            self.publish(seq)
            if seq.computed == len(seq.tokens):
                self.sample(seq, scores)

    def sample(self, seq: Sequence, logits: torch.Tensor) -> None:
        """The largest of logits / T + noise; then the sequence goes on or ends."""
        if seq.temperature:
            noise = gumbel_rows([seq.seed], [0], [len(seq.tokens)], len(logits))
            logits = logits / seq.temperature + torch.from_numpy(noise[0])
        seq.tokens.append(int(logits.argmax()))
        seq.output.append(seq.tokens[-1])
        if seq.tokens[-1] in self.model.eos or len(seq.tokens) == seq.max_len:
            self.running.remove(seq)
            self.release(seq)

    def preempt(self, seq: Sequence) -> None:
        """Take everything from a sequence. It will be computed again, its output so far as part of the prompt."""
        self.running.remove(seq)
        self.release(seq)
        self.waiting.append(seq)
        self.preempted += 1

    # --- blocks -----------------------------------------------------------------------------------------------------

    def reserve(self, seq: Sequence, length: int) -> bool:
        """Grow the table to hold ``length`` tokens; False, and nothing changed, if too few blocks are free."""
        missing = -(-length // self.block_size) - len(seq.table)
        if missing > len(self.free):
            return False
        for _ in range(missing):
            self.hold(seq, block := next(iter(self.free)))
            self.block_of.pop(self.name_of.pop(block, ()), None)  # what it held for others is about to be overwritten
        return True

    def hold(self, seq: Sequence, block: int) -> None:
        self.free.pop(block, None)
        self.refs[block] += 1
        seq.table.append(block)

    def release(self, seq: Sequence) -> None:
        """Give all blocks back, the last one first. Those that nobody holds are free, and can still be found."""
        for block in reversed(seq.table):
            self.refs[block] -= 1
            if not self.refs[block]:
                self.free[block] = None
        seq.table, seq.computed = [], 0

    def match(self, seq: Sequence) -> None:
        """Share the blocks of the longest beginning that is in the cache; at least one token is left to compute."""
        for end in range(self.block_size, len(seq.tokens), self.block_size):
            if (block := self.block_of.get(tuple(seq.tokens[:end]))) is None:
                break
            self.hold(seq, block)
            seq.computed = end
        self.hits += seq.computed

    def publish(self, seq: Sequence) -> None:
        for i in range(seq.computed // self.block_size):
            name = tuple(seq.tokens[: (i + 1) * self.block_size])
            if name not in self.block_of:
                self.block_of[name], self.name_of[seq.table[i]] = seq.table[i], name


class TinyLlama:
    """The model and its KV cache, in float32: K and V are [layers, blocks, block_size, kv_heads, head_dim]."""

    def __init__(self, folder: Path, num_blocks: int, block_size: int) -> None:
        c = json.loads((folder / "config.json").read_text())
        self.block_size, self.layers = block_size, c["num_hidden_layers"]
        self.eos, self.eps = c["eos_token_id"], c["rms_norm_eps"]
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.w = {k.removeprefix("model."): v.float() for k, v in load_file(folder / "model.safetensors").items()}
        self.k, self.v = torch.zeros(2, self.layers, num_blocks, block_size, self.kv_heads, self.dim)
        self.freq = c["rope_theta"] ** (-torch.arange(0, self.dim, 2) / self.dim)

    @torch.inference_mode()
    def forward(self, work: list[tuple[list[int], list[int], int, int]]) -> torch.Tensor:
        """work: (tokens, block table, first position, count) of each sequence -> logits [S, V] after its last one."""
        ids, positions, blocks = [], [], []
        for tokens, table, start, n in work:
            ids += tokens[start : start + n]
            positions += range(start, start + n)
            blocks += [table[p // self.block_size] for p in range(start, start + n)]
        position, block = torch.tensor(positions), torch.tensor(blocks)
        angle = (position[:, None] * self.freq).repeat(1, 2)[:, None]  # [T, 1, head_dim]
        x, w = self.w["embed_tokens.weight"][ids], self.w
        for i in range(self.layers):
            at = f"layers.{i}."
            h = self.norm(x, at + "input_layernorm.weight")
            q, k, v = (F.linear(h, w[f"{at}self_attn.{m}_proj.weight"]).unflatten(1, (-1, self.dim)) for m in "qkv")
            self.k[i, block, position % self.block_size] = rotate(k, angle)
            self.v[i, block, position % self.block_size] = v
            x = x + F.linear(self.attend(rotate(q, angle), i, work), w[at + "self_attn.o_proj.weight"])
            h = self.norm(x, at + "post_attention_layernorm.weight")
            gate, up = (F.linear(h, w[f"{at}mlp.{m}_proj.weight"]) for m in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, w[at + "mlp.down_proj.weight"])
        last = torch.tensor([n for *_, n in work]).cumsum(0) - 1
        return F.linear(self.norm(x[last], "norm.weight"), w["embed_tokens.weight"])

    def attend(self, q: torch.Tensor, layer: int, work: list[tuple[list[int], list[int], int, int]]) -> torch.Tensor:
        """Each sequence's queries over its own keys, found through its table. q [T, heads, D] -> [T, heads * D]."""
        out = []
        for (_, table, start, n), rows in zip(work, q.split([n for *_, n in work])):
            k, v = (cache[layer, table].flatten(0, 1)[: start + n].transpose(0, 1) for cache in (self.k, self.v))
            k, v = (x.repeat_interleave(self.heads // self.kv_heads, 0) for x in (k, v))
            seen = torch.ones(n, start + n, dtype=torch.bool).tril(start)  # nobody looks ahead
            out.append(F.scaled_dot_product_attention(rows.transpose(0, 1), k, v, attn_mask=seen).transpose(0, 1))
        return torch.cat(out).flatten(1)

    def norm(self, x: torch.Tensor, weight: str) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.w[weight]


def rotate(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (component d, component d + D/2) by an angle that grows with the position."""
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()
