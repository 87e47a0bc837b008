"""BlockPool: who holds which KV block, and which free block is handed out next.

A block is an id, 0 .. num_blocks - 1; the tensors behind it belong to the data plane. Each block has a reference count:
the number of block tables that name it. Free blocks wait in a queue, least recently used first, because a free block
may still hold K/V that the prefix cache can use: it is handed out again only after all those freed before it. A cached
block that is wanted again leaves the queue from the middle, so removal must be O(1): an OrderedDict is a hash table
threaded by a linked list, which is exactly that.

Block 0 is the null block. It is never handed out; padding reads and writes land there.

Source: PagedAttention (Kwon et al., SOSP 2023) for blocks and counts; the LRU free queue is vLLM's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

NULL_BLOCK = 0


class BlockPool:
    """``num_blocks`` blocks, the null block included.

    refs        reference count by block id
    total_refs  sum of all reference counts; with ``num_used`` it tells how many blocks sharing has saved
    """

    def __init__(self, num_blocks: int) -> None:
        self.refs = [0] * num_blocks
        self.total_refs = 0
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_blocks(self) -> int:
        """Blocks that can be handed out in all (the null block cannot)."""
        return len(self.refs) - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self.refs) - 1 - len(self._free)

    def allocate(self, n: int) -> list[int]:
        """Hand out the ``n`` least recently used free blocks, with one reference each. Check num_free first."""
        free, refs = self._free, self.refs
        blocks = [free.popitem(last=False)[0] for _ in range(n)]
        for block in blocks:
            refs[block] = 1
        self.total_refs += n
        return blocks

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for each block; a free one (kept by the prefix cache) comes back into use."""
        refs = self.refs
        for block in blocks:
            if refs[block] == 0:
                del self._free[block]
            refs[block] += 1
        self.total_refs += len(blocks)

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each block, in the given order; those without any go to the end of the free queue."""
        refs, free = self.refs, self._free
        for block in blocks:
            refs[block] -= 1
            self.total_refs -= 1
            if refs[block] == 0:
                free[block] = None
