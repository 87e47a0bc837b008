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
claim bit by bit. (It holds per machine and number of threads; another processor may round otherwise.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.reference.ops.activation import gelu_new, relu
from quire.reference.ops.attention import groups_of
from quire.reference.ops.cache import AttnMeta, attn_meta, copy_blocks, write_kv
from quire.reference.ops.linear import embed, row_tiles
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
QUERY_ROWS = 8  # query rows per tile, or the next multiple that holds all query heads of one K/V head
QUERY_CHUNK = 64  # queries of one sequence handled at once; bounds the memory, has no influence on the result
GATHER_BYTES = 2 << 20


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times the transpose of weight [N, K], plus bias [N] -> [T, N], in tiles of exactly 16 rows."""
    return torch.cat([F.linear(tile, weight, bias) for tile in row_tiles(x)])[: x.shape[0]]


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
    tile_rows = -(-share // QUERY_ROWS) * QUERY_ROWS
    per_tile = tile_rows // share  # queries in one tile of query rows
    max_tokens = GATHER_BYTES // (kv_heads * dim * 4)
    out = torch.zeros_like(q)
    for group in groups_of(meta, k_cache.shape[1], window, max_tokens, query_chunk=QUERY_CHUNK, key_tile=KEY_TILE):
        g, n, length = group.mask.shape
        tiles = -(-n // per_tile)

        def fold(rows: Tensor) -> Tensor:
            """[g, n, heads, share, X] -> [g * heads * tiles, tile_rows, X], unused rows zero."""
            heads = rows.shape[2]
            rows = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, tiles * per_tile - n))
            rows = rows.unflatten(1, (tiles, per_tile)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4)
            return F.pad(rows, (0, 0, 0, tile_rows - per_tile * share)).reshape(g * heads * tiles, tile_rows, -1)

        queries = fold(q.index_select(0, group.rows).float().view(g, n, kv_heads, share, dim))
        keys, values = (group.gather(cache).float() for cache in (k_cache, v_cache))  # [g, Hk, length, D]

        def tile_of(kv: Tensor, j: int) -> Tensor:
            """The j-th tile of keys or values, once for every tile of queries: [g * Hk * tiles, KEY_TILE, D]."""
            tile = kv[:, :, j * KEY_TILE : (j + 1) * KEY_TILE]
            return tile.unsqueeze(2).expand(-1, -1, tiles, -1, -1).reshape(-1, KEY_TILE, dim)

        steps = range(length // KEY_TILE)
        scores = torch.stack([torch.bmm(queries, tile_of(keys, j).transpose(1, 2)) for j in steps], dim=2) * scale
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        hidden = fold(~group.mask.view(g, n, 1, 1, length).expand(-1, -1, kv_heads, share, -1))
        scores = scores.masked_fill(hidden.view(scores.shape), -torch.inf)  # [g * Hk * tiles, tile_rows, steps, 64]
        weights = torch.exp(scores - scores.amax((2, 3), keepdim=True))
        total = torch.zeros(*queries.shape[:2], 1, device=q.device)
        mixed = torch.zeros_like(queries)
        for j in steps:
            tile = weights[:, :, j].contiguous()
            total = total + tile.sum(-1, keepdim=True)
            mixed = mixed + torch.bmm(tile, tile_of(values, j))
        mixed = (mixed / total)[:, : per_tile * share].reshape(g, kv_heads, tiles, per_tile, share, dim)
        mixed = mixed.permute(0, 2, 3, 1, 4, 5).reshape(g, tiles * per_tile, kv_heads * share, dim)[:, :n]
        out.index_copy_(0, group.rows, mixed.reshape(g * n, kv_heads * share, dim).to(q.dtype))
    return out
