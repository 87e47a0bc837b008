"""What each kernel of the fast plane reaches of what the hardware can do.

    python -m benchmarks.kernels [--only decode] [--json PATH]

The floor of a kernel is the time that reading and writing its bytes takes at the bandwidth measured here (a sum over
4 GB), or its arithmetic at the rate of a large matrix product measured here; ``vs floor`` is floor / time, so 1 is
perfect. Kernels are timed inside a CUDA graph, as the engine runs them; medians. Data larger than the L2 cache is
always fresh; small activations are in the cache, as they are in an engine. Random data: zeros are faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator

import torch
import triton
from torch import Tensor

from quire.fast import ops
from quire.fast.ops import invariant
from quire.fast.ops.linear import gemv
from quire.fast.sampling import DeviceSamplerState, sample
from quire.reference.control.params import SamplingParams
from quire.reference.sampling import SamplerState
from quire.report import Row, show, write

DEVICE, BF16 = "cuda", torch.bfloat16
# heads, K/V heads, head size; layers; (columns, rows) of a layer's matrices; vocabulary and hidden size
MODELS = {
    "qwen3-0.6b": ((16, 8, 128), 28, [(1024, 4096), (2048, 1024), (1024, 6144), (3072, 1024)], (1024, 151936)),
    "llama-3.2-1b": ((32, 8, 64), 16, [(2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048)], (2048, 128256)),
    "llama-3-8b": ((32, 8, 128), 32, [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)], (4096, 128256)),
}


def microseconds(f: Callable[..., object], *args: object, repeat: int = 4, **kwargs: object) -> float:
    """Time of one call of f(*args, **kwargs) inside a graph of ``repeat`` calls."""
    f(*args, **kwargs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            f(*args, **kwargs)
    return triton.testing.do_bench(graph.replay, warmup=10, rep=60, return_mode="median") / repeat * 1e3


class Ceilings:
    """The machine's own limits, measured: bytes read per µs and bf16 operations per µs."""

    def __init__(self) -> None:
        x = torch.empty(1 << 30, device=DEVICE).normal_()
        self.read = x.numel() * 4 / microseconds(x.sum, repeat=1)
        del x
        a = torch.randn(8192, 8192, device=DEVICE, dtype=BF16)
        self.matrix = 2 * 8192**3 / microseconds(torch.matmul, a, a, repeat=1)

    def row(self, name: str, time: float, *, moved: float = 0, operations: float = 0, **others: float) -> Row:
        """``others``: times of peers, in µs."""
        floor = max(moved / self.read, operations / self.matrix)
        vs = {"floor": floor / time, **{peer: t / time for peer, t in others.items()}}
        unit = f"µs  {operations / time / 1e6:.0f} TFLOP/s" if operations else f"µs  {moved / time / 1e3:.0f} GB/s"
        return Row(f"kernel/{name}", time, unit, vs)


def paged(lengths: list[int], counts: list[int], heads: tuple[int, int, int], size: int = 16) -> tuple[list, int]:
    """Arguments of ``attention`` for sequences of these lengths, and the bytes of K/V that they hold."""
    hq, hk, dim = heads
    blocks = [-(-n // size) for n in lengths]
    ids = (torch.randperm(sum(blocks)) + 1).tolist()
    tables = [[ids.pop() for _ in range(n)] for n in blocks]
    meta = ops.attn_meta(counts, lengths, tables, size, device=DEVICE)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=BF16)

    caches = rand(sum(blocks) + 1, size, hk, dim), rand(sum(blocks) + 1, size, hk, dim)
    tokens = sum(counts)
    qkv = rand(tokens, hq, dim), rand(tokens, hk, dim), rand(tokens, hk, dim)
    return [*qkv, *caches, meta, dim**-0.5], sum(lengths) * hk * dim * 4


def decode(limits: Ceilings) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    for model, (heads, *_) in MODELS.items():
        batches = {
            "256x840": [840] * 256,
            "256xragged": torch.randint(420, 1260, (256,), generator=generator).tolist(),
            "8x8192": [8192] * 8,
            "1x2048": [2048],
            "255x500+1x32k": [500] * 255 + [32768],
        }
        for name, lengths in batches.items():
            args, moved = paged(lengths, [1] * len(lengths), heads)
            yield limits.row(f"decode/{model}/{name}", microseconds(ops.attention, *args), moved=moved)


def prefill(limits: Ceilings) -> Iterator[Row]:
    for model, (heads, *_) in MODELS.items():
        hq, _, dim = heads
        for name, n, past in (("8192", 8192, 0), ("2048", 2048, 0), ("2048-after-6144", 2048, 6144)):
            args, _ = paged([n + past], [n], heads)
            operations = 4 * hq * dim * (n * past + n * (n + 1) / 2)
            times = {"": microseconds(ops.attention, *args)}
            if past == 0:
                q, k, v = (x.transpose(0, 1)[None] for x in args[:3])
                sdpa = torch.nn.functional.scaled_dot_product_attention
                times["torch"] = microseconds(sdpa, q, k, v, is_causal=True, enable_gqa=True)
            yield limits.row(f"prefill/{model}/{name}", times.pop(""), operations=operations, **times)
        args, moved = paged([2048] + [840] * 255, [2048] + [1] * 255, heads)
        time = microseconds(ops.attention, *args)
        yield limits.row(f"mixed/{model}/2048+255x840", time, moved=moved)


def elementwise(limits: Ceilings) -> Iterator[Row]:
    for tokens in (8192, 256, 1):
        x, y = (torch.randn(tokens, 4096, device=DEVICE, dtype=BF16) for _ in range(2))
        w = torch.randn(4096, device=DEVICE, dtype=BF16)
        size = x.numel() * 2
        yield limits.row(f"rms_norm/{tokens}x4096", microseconds(ops.rms_norm, x, w, 1e-6), moved=2 * size)
        yield limits.row(f"add_rms_norm/{tokens}", microseconds(ops.add_rms_norm, x, y, w, 1e-6), moved=4 * size)
        wide = torch.randn(tokens, 2 * 14336, device=DEVICE, dtype=BF16)
        moved = wide.numel() * 3
        yield limits.row(f"silu_and_mul/{tokens}x14336", microseconds(ops.silu_and_mul, wide), moved=moved)
        qkv = torch.randn(tokens, 48, 128, device=DEVICE, dtype=BF16)
        q, k = qkv[:, :32], qkv[:, 32:40]
        positions = torch.arange(tokens, device=DEVICE)
        table = torch.randn(tokens, 128, device=DEVICE)
        weight = torch.randn(128, device=DEVICE, dtype=BF16)
        time = microseconds(ops.qk_norm_rope, q, k, positions, table, 1e-6, weight, weight)
        yield limits.row(f"qk_norm_rope/{tokens}x40x128", time, moved=tokens * (40 * 128 * 4 + 128 * 4))
    caches = [tuple(torch.randn(4096, 16, 8, 128, device=DEVICE, dtype=BF16) for _ in range(2))]
    ids = torch.randperm(4096, device=DEVICE)
    time = microseconds(ops.copy_blocks, caches, ids[:2048], ids[2048:])
    yield limits.row("copy_blocks/2048x2", time, moved=caches[0][0].numel() * 2 * 2)


def each(f: Callable[[Tensor, Tensor], Tensor], pairs: list[tuple[Tensor, Tensor]]) -> None:
    for x, weight in pairs:
        f(x, weight)


def linears(limits: Ceilings) -> Iterator[Row]:
    """One step's whole chain of linears, distinct weights for each layer."""
    for model, (_, layers, shapes, head) in MODELS.items():
        weights = [torch.randn(n, k, device=DEVICE, dtype=BF16) for _ in range(layers) for k, n in shapes]
        weights.append(torch.randn(head[1], head[0], device=DEVICE, dtype=BF16))
        moved = sum(w.numel() * 2 for w in weights)
        xs = {k: torch.randn(1, k, device=DEVICE, dtype=BF16) for k in {w.shape[1] for w in weights}}

        pairs = [(xs[w.shape[1]], w) for w in weights]
        cublas = microseconds(each, torch.nn.functional.linear, pairs, repeat=1)
        yield limits.row(f"gemv/{model}", microseconds(each, gemv, pairs, repeat=1), moved=moved, cublas=cublas)
        # The verification of five drafts: whichever kernel is taken for six rows of these weights.
        six = [(x.expand(6, -1).contiguous(), w) for x, w in pairs]
        cublas = microseconds(each, torch.nn.functional.linear, six, repeat=1)
        yield limits.row(f"few_rows/{model}", microseconds(each, ops.linear, six, repeat=1), moved=moved, cublas=cublas)


def sampler(limits: Ceilings) -> Iterator[Row]:
    """256 rows of 151,936 normal logits (peaked: four times as spread); the floor is reading them once."""
    vocab = 151936
    cases = {
        "greedy": SamplingParams(temperature=0),
        "temperature": SamplingParams(temperature=0.6),
        "top_k": SamplingParams(temperature=0.6, top_k=50),
        "top_p": SamplingParams(temperature=0.6, top_p=0.9),
        "top_p-peaked": SamplingParams(temperature=0.6 / 4, top_p=0.9),
        "min_p": SamplingParams(temperature=0.6, min_p=0.05),
        "penalties": SamplingParams(temperature=0.6, repetition_penalty=1.1, frequency_penalty=0.1),
        "all": SamplingParams(temperature=0.6, top_k=50, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.1),
    }
    for rows, names in ((256, cases), (1, ("temperature", "top_p-peaked", "all"))):
        tokens = torch.randint(0, vocab, (rows, 4097), dtype=torch.int32, device=DEVICE)
        at = torch.arange(rows, device=DEVICE)
        lengths = torch.full((rows,), 840, device=DEVICE)
        for dtype in (torch.float32, BF16):
            logits = torch.randn(rows, vocab, device=DEVICE).to(dtype)
            for name in names:
                params = cases[name]
                host = SamplerState(rows, vocab)
                for row in range(rows):
                    host.start(row, params, prompt_len=400, seed=row, stream=0, stop_ids=())
                penalised = bool(host.penalised.any())
                if penalised and dtype != torch.float32:
                    continue
                truncated = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
                args = logits, DeviceSamplerState.like(host, DEVICE), at, lengths, tokens
                time = microseconds(sample, *args, penalised=penalised, truncated=truncated, repeat=2)
                kind = str(dtype).removeprefix("torch.")
                size = logits.numel() * logits.element_size()
                yield limits.row(f"sampler/{rows}x{vocab}/{name}/{kind}", time, moved=size)


def invariant_ops(limits: Ceilings) -> Iterator[Row]:
    """The price of batch invariance: against this module's own ops and, for ``linear``, cuBLAS."""
    heads, _, shapes, _ = MODELS["llama-3-8b"]
    for name, lengths, counts in (
        ("decode/64x840", [840] * 64, [1] * 64),
        ("decode/8x8192", [8192] * 8, [1] * 8),
        ("prefill/2048", [2048], [2048]),
    ):
        args, moved = paged(lengths, counts, heads)
        usual = microseconds(ops.attention, *args)
        time = microseconds(invariant.attention, *args)
        yield limits.row(f"invariant/{name}", time, moved=moved, usual=usual)
    for rows in (1, 64, 2048):
        pairs = [tuple(torch.randn(m, k, device=DEVICE, dtype=BF16) for m in (rows, n)) for k, n in shapes]
        moved = sum(w.numel() * 2 for _, w in pairs)
        usual, time = (microseconds(each, module.linear, pairs) for module in (ops, invariant))
        yield limits.row(f"invariant/linear/{rows}", time, moved=moved, operations=rows * moved, usual=usual)


GROUPS = {
    "invariant": invariant_ops,
    "decode": decode,
    "prefill": prefill,
    "elementwise": elementwise,
    "linear": linears,
    "sampler": sampler,
}


def measure(limits: Ceilings, groups: Iterable[str] = tuple(GROUPS)) -> list[Row]:
    torch.manual_seed(0)
    rows: list[Row] = []
    for name in groups:
        rows += GROUPS[name](limits)
        torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=GROUPS, action="append")
    parser.add_argument("--json")
    args = parser.parse_args()
    limits = Ceilings()
    title = f"read {limits.read / 1e6:.2f} TB/s, bf16 matrix product {limits.matrix / 1e6:.0f} TFLOP/s"
    rows = measure(limits, args.only or GROUPS)
    show(rows, title)
    if args.json:
        write(args.json, rows, "python -m benchmarks.kernels")


if __name__ == "__main__":
    main()
