"""The same ops, with results that are bitwise independent of the batch (He et al. 2025, "Defeating nondeterminism").

Floating-point addition is not associative, and libraries choose the order of a sum by the shape of the whole problem:
a row multiplied alone differs in its last bits from the same row among 64. Here every sum has an order that depends on
the row's own content and its absolute position only:

- ``linear`` multiplies tiles of exactly 16 rows, so the library always solves the same problem, at the same alignment;
- ``attention`` multiplies tiles of a fixed number of query rows by tiles of 64 keys cut at absolute positions, and adds
  the tiles up one by one from position 0 on. A tile that a query does not see adds exact zeros;
- ``silu_and_mul`` is spelled with ``exp``, because torch's ``silu`` treats the last few elements of a stretch of memory
  by another routine, and which elements those are depends on the batch.

What needs no second version is the reference's own: norms reduce row by row, the rest is elementwise. A query's result
is the same as a decode, in a prompt chunk of any size, among any neighbours, with any block size. Tests prove each
claim bit by bit, on CPUs. (It holds per machine and number of threads; another processor may round otherwise.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.reference.ops.activation import gelu_new, relu
from quire.reference.ops.attention import groups_of
from quire.reference.ops.cache import AttnMeta, attn_meta, copy_blocks, write_kv
from quire.reference.ops.linear import embed
from quire.reference.ops.norm import add_rms_norm, layer_norm, rms_norm
from quire.reference.ops.rope import qk_norm_rope

__all__ = [
    "AttnMeta",
    "add_rms_norm",
    "attention",
    "attn_meta",
    "copy_blocks",
    "embed",
    "gelu_new",
    "layer_norm",
    "linear",
    "qk_norm_rope",
    "relu",
    "rms_norm",
    "silu_and_mul",
]

KEY_TILE = 64  # keys per tile, cut at multiples of 64
QUERY_ROWS = 16  # query rows per tile, or the next multiple that holds all query heads of one K/V head
QUERY_CHUNK = 32  # queries of one sequence handled at once; bounds the memory, has no influence on the result
GATHER_BYTES = 2 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N] -> [T, N], in tiles of exactly 16 rows."""
    filled = torch.cat([x, x.new_zeros(-x.shape[0] % 16, x.shape[1])])
    return torch.cat([F.linear(tile, weight, bias) for tile in filled.split(16)])[: x.shape[0]]


def silu_and_mul(x: Tensor) -> Tensor:
    """x [T, 2I] holds gate and up side by side -> silu(gate) * up, [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    gate = gate.float()
    return (gate / (1 + torch.exp(-gate))).to(x.dtype) * up


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    meta: AttnMeta,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Shapes and meaning as in ``quire.reference.ops.attention``; all arithmetic in float32.

    The softmax needs no running rescale: the maximum of all scores is found first, and a maximum does not depend on
    the order in which it is taken.
    """
    write_kv(k, v, k_cache, v_cache, meta.slot)
    kv_heads, dim = k.shape[1:]
    share = q.shape[1] // kv_heads
    rows = -(-share // QUERY_ROWS) * QUERY_ROWS
    max_tokens = GATHER_BYTES // (kv_heads * dim * 4)
    out = torch.zeros_like(q)
    for group in groups_of(meta, k_cache.shape[1], window, max_tokens, query_chunk=QUERY_CHUNK, key_tile=KEY_TILE):
        g, n, length = group.mask.shape
        steps = length // KEY_TILE
        queries = _fold(q.index_select(0, group.rows).float().view(g, n, kv_heads, share, dim), rows)
        keys, values = (_key_tiles(cache, group.slots.view(g, steps, KEY_TILE)) for cache in (k_cache, v_cache))
        shape = len(queries), steps, g, kv_heads, rows

        # Each tile of queries meets every tile of keys; all these products have the same shape.
        repeated = queries.unsqueeze(1).expand(*shape, dim).flatten(1, 3)
        scores = torch.stack([torch.bmm(tile, keys.transpose(1, 2)) for tile in repeated])
        scores = scores.view(*shape, KEY_TILE).mul_(scale)
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        unseen = _fold(~group.mask.view(g, n, 1, 1, length).expand(-1, -1, -1, share, -1), rows)
        scores.masked_fill_(unseen.unflatten(-1, (steps, KEY_TILE)).movedim(-2, 1), -torch.inf)
        weights = scores.sub_(scores.amax((1, -1), keepdim=True)).exp_()

        parts = torch.stack([torch.bmm(tile, values) for tile in weights.flatten(1, 3)]).view(*shape, dim)
        total, mixed = torch.zeros(*queries.shape[:-1], 1, device=q.device), torch.zeros_like(queries)
        for step in range(steps):  # one tile of keys after the other: the order of this sum is the point
            total += weights[:, step].sum(-1, keepdim=True)
            mixed += parts[:, step]
        out.index_copy_(0, group.rows, _unfold(mixed / total, n, share).to(q.dtype))
    return out


def _fold(x: Tensor, rows: int) -> Tensor:
    """[g, n, heads, share, X] -> [tiles, g, heads, rows, X]: n * share query rows in tiles, filled up with zeros.

    A tile holds whole queries only: with 3 query heads per K/V head and 16 rows, five queries and one empty row.
    """
    n, share = x.shape[1], x.shape[3]
    per_tile = rows // share
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -n % per_tile)).unflatten(1, (-1, per_tile))
    return F.pad(x.permute(1, 0, 3, 2, 4, 5).flatten(3, 4), (0, 0, 0, rows - per_tile * share))


def _unfold(x: Tensor, n: int, share: int) -> Tensor:
    """The inverse of ``_fold``, without the fill: -> [g * n, heads * share, X]."""
    g, heads, rows, width = x.shape[1:]
    x = x[:, :, :, : rows // share * share].unflatten(3, (-1, share)).permute(1, 0, 3, 2, 4, 5)
    return x.flatten(1, 2)[:, :n].reshape(g * n, heads * share, width)


def _key_tiles(cache: Tensor, slots: Tensor) -> Tensor:
    """Gather K or V of slots [g, steps, KEY_TILE], head by head, as float32 [steps * g * Hk, KEY_TILE, D]."""
    heads, dim = cache.shape[2:]
    index = slots.movedim(1, 0).unsqueeze(2) * heads + torch.arange(heads, device=slots.device).unsqueeze(1)
    return cache.view(-1, dim).index_select(0, index.flatten()).float().view(-1, KEY_TILE, dim)
