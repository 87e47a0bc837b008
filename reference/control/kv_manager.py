"""KVManager: gives sequences the KV blocks they need, shares what can be shared, and copies before a shared write.

A sequence sees the KV cache through its ``BlockTable``: position p lives in slot p % block_size of block
``blocks[p // block_size]``. All of paging, sharing and swapping is bookkeeping on these small lists; the data plane is
told about it by the grants, copies and swaps that this class returns.

Two promises. *All or nothing*: a call that cannot be met returns None and has changed nothing. *Copy-on-write*: a
block with several holders is never written; ``reserve`` swaps in a private copy first.

Blocks that are freed while a plan is being built are handed out again within it. That is safe by the order of things:
a plan's swap-outs read before anything is written, and the source of a copy cannot become free within its plan. For it
is held by later siblings of the one that copies; siblings are neighbours in the order of service; and preemption takes
from the end of that order, so before a sibling could take such a block it would be its only holder and not need one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from quire.reference.control.block_pool import NULL_BLOCK, BlockPool
from quire.reference.control.plan import Swap
from quire.reference.control.prefix_cache import PrefixCache, block_hash, chain_root
from quire.reference.control.request import SchedulerStats


@dataclass(slots=True)
class BlockTable:
    """One sequence's blocks on the device or, while it is swapped out, on the host.

    root            start of its hash chain (the salt)
    blocks          device blocks by index; the last one may be partly filled
    host_blocks     host blocks by index while swapped out
    hashes          names of its full blocks, as far as they were needed yet
    num_published   how many leading blocks have been offered to the prefix cache
    """

    root: bytes = b""
    blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_published: int = 0


class Grant(NamedTuple):
    """What ``reserve`` gave: blocks appended to the table, and (src, dst, index) of blocks to copy before the write."""

    new_blocks: list[int]
    copies: list[tuple[int, int, int]]


NOTHING_NEEDED = Grant([], [])


class Admission(NamedTuple):
    """A sequence's first chunk: positions ``start .. end - 1``, its whole block table, and the blocks to bring back.

    ``write`` is False if K/V of all positions is there already and only the last one's logits are missing.
    """

    start: int
    end: int
    write: bool
    blocks: list[int]
    swap_in: list[Swap]


class KVManager:
    """Block tables over one device pool, one host pool (swap space) and, optionally, a prefix cache."""

    def __init__(
        self, num_blocks: int, block_size: int, num_host_blocks: int = 0, enable_prefix_caching: bool = True
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.host_pool = BlockPool(num_host_blocks + 1)  # its block 0 is null too, so that both are numbered alike
        self.prefix = PrefixCache() if enable_prefix_caching else None
        self.num_copies = 0

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def new_table(self, cache_salt: str | None = None) -> BlockTable:
        """An empty table whose blocks are shared only with others of the same salt."""
        return BlockTable(chain_root(cache_salt))

    # --- growing ------------------------------------------------------------------------------------------------------

    def reserve(self, table: BlockTable, start: int, n: int, lookahead: int = 0) -> Grant | None:
        """Make positions ``start .. start + n + lookahead - 1`` writable by this sequence alone.

        Appends the blocks that are missing and replaces shared ones in the written range by fresh copies. None if the
        pool has too few free blocks; then nothing has changed.
        """
        blocks, size, refs = table.blocks, self.block_size, self.pool.refs
        end, first = start + n + lookahead, start // size
        num_missing = -(-end // size) - len(blocks)
        if num_missing <= 0 and (end - 1) // size == first and refs[blocks[first]] == 1:
            return NOTHING_NEEDED  # almost every decode step: the tail block has room and is private
        shared = [i for i in range(first, min(-(-end // size), len(blocks))) if refs[blocks[i]] > 1]
        num_missing = max(num_missing, 0)
        if num_missing + len(shared) > self.pool.num_free:
            return None
        new_blocks = self._allocate(num_missing + len(shared))
        copies = []
        for i in shared:
            src, dst = blocks[i], new_blocks.pop()
            copies.append((src, dst, i))
            blocks[i] = dst
            self.pool.release((src,))  # somebody else still holds it
            if i < table.num_published:
                raise AssertionError(f"block {src} is published in the prefix cache and must never be written")
        self.num_copies += len(copies)
        blocks += new_blocks
        return Grant(new_blocks, copies)

    def trim(self, table: BlockTable, length: int) -> None:
        """Give the blocks behind the first ``length`` positions back: they were reserved for drafts."""
        keep = self.blocks_for(length)
        if len(table.blocks) > keep:
            self.pool.release(reversed(table.blocks[keep:]))
            del table.blocks[keep:]

    def admit(self, table: BlockTable, tokens: Sequence[int], budget: int, use_cache: bool = True) -> Admission | None:
        """Give a new or recomputed sequence its blocks for a first chunk of at most ``budget`` tokens.

        The longest cached beginning is shared instead of computed. If even the last token is cached, computation starts
        one before the end: only its logits are missing (the plan then says ``write=False``). None changes nothing.
        """
        assert not table.blocks and not table.host_blocks
        cached: list[int] = []
        if self.prefix is not None and use_cache:
            self._extend_hashes(table, tokens, len(tokens))
            cached = self.prefix.match(table.hashes)
        num_cached = len(cached) * self.block_size
        end = min(num_cached + budget, len(tokens))
        num_new = self.blocks_for(end) - len(cached)
        revived = sum(self.pool.refs[block] == 0 for block in cached)
        if num_new + revived > self.pool.num_free:
            return None
        self.pool.share(cached)
        table.blocks = cached + self._allocate(num_new)
        table.num_published = len(cached)
        return Admission(min(num_cached, len(tokens) - 1), end, num_cached < len(tokens), list(table.blocks), [])

    def _allocate(self, n: int) -> list[int]:
        blocks = self.pool.allocate(n)
        if self.prefix is not None:
            for block in blocks:
                self.prefix.evict(block)
        return blocks

    # --- sharing ------------------------------------------------------------------------------------------------------

    def fork(self, parent: BlockTable, length: int) -> BlockTable:
        """A table for a child that shares the parent's first ``length`` positions, the partly filled tail included."""
        blocks = parent.blocks[: self.blocks_for(length)]
        self.pool.share(blocks)
        num_full = length // self.block_size
        return BlockTable(
            parent.root, blocks, hashes=parent.hashes[:num_full], num_published=min(parent.num_published, num_full)
        )

    def commit(self, table: BlockTable, tokens: Sequence[int], n_verified: int) -> None:
        """K/V of the first ``n_verified`` positions is computed and final: publish the blocks that are full now."""
        num_full = min(n_verified // self.block_size, len(table.blocks))
        if self.prefix is None or num_full <= table.num_published:
            return
        self._extend_hashes(table, tokens, num_full * self.block_size)
        for i in range(table.num_published, num_full):
            parent = table.hashes[i - 1] if i else table.root
            self.prefix.publish(table.hashes[i], table.blocks[i], parent)
        table.num_published = num_full

    def _extend_hashes(self, table: BlockTable, tokens: Sequence[int], length: int) -> None:
        size, hashes = self.block_size, table.hashes
        for i in range(len(hashes), length // size):
            hashes.append(block_hash(hashes[-1] if hashes else table.root, tokens[i * size : (i + 1) * size]))

    # --- giving back --------------------------------------------------------------------------------------------------

    def release(self, table: BlockTable) -> None:
        """Give all blocks back, the last one first: a sequence's beginning is what others are likeliest to reuse."""
        self.pool.release(reversed(table.blocks))
        self.host_pool.release(table.host_blocks)
        table.blocks, table.host_blocks, table.num_published = [], [], 0

    def swap_out(self, table: BlockTable, length: int) -> list[Swap] | None:
        """Move the blocks of the first ``length`` positions to the host and free the device's. None changes nothing."""
        num_blocks = self.blocks_for(length)
        if num_blocks > self.host_pool.num_free:
            return None
        host_blocks = self.host_pool.allocate(num_blocks)
        swaps = [Swap(d, h) for d, h in zip(table.blocks, host_blocks, strict=False)]
        self.release(table)
        table.host_blocks = host_blocks
        return swaps

    def swap_in(self, table: BlockTable, num_computed: int, num_tokens: int, budget: int) -> Admission | None:
        """Bring back a swapped-out sequence: ``num_computed`` of its ``num_tokens`` have K/V. None changes nothing."""
        end = min(num_computed + budget, num_tokens)
        num_blocks = self.blocks_for(end)
        if num_blocks > self.pool.num_free:
            return None
        table.blocks = self._allocate(num_blocks)
        swaps = [Swap(d, h) for d, h in zip(table.blocks, table.host_blocks, strict=False)]  # the rest is new room
        self.host_pool.release(table.host_blocks)  # after a preemption nothing is admitted: no swap-out takes these now
        table.host_blocks = []
        return Admission(min(num_computed, num_tokens - 1), end, num_computed < num_tokens, list(table.blocks), swaps)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; running sequences keep their blocks."""
        if self.prefix is not None:
            self.prefix.clear()

    def fill_in(self, stats: SchedulerStats, tables: Iterable[tuple[BlockTable, int]]) -> None:
        """Add the figures of both pools, given the device's tables and how many positions each has in use."""
        unused: dict[int, int] = {}  # slots at the end of each table, a tail that is shared counted once
        for table, length in tables:
            free = len(table.blocks) * self.block_size - length
            last = table.blocks[-1] if table.blocks else NULL_BLOCK
            unused[last] = min(free, unused.get(last, free))
        stats.block_size = self.block_size
        stats.blocks_total = self.pool.num_blocks
        stats.blocks_used = self.pool.num_used
        stats.blocks_shared = self.pool.total_refs - self.pool.num_used
        stats.slots_used = self.pool.num_used * self.block_size - sum(unused.values())
        stats.host_blocks_used = self.host_pool.num_used
