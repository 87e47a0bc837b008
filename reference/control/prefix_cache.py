"""PrefixCache: find the KV blocks of a prompt's beginning that an earlier request has already computed.

Only full blocks are cached. A block is named by a hash of its tokens *and* of the block before it, so equal names mean
equal prefixes, not only equal blocks. The chain starts at a salt: requests with another adapter, another image or
another ``cache_salt`` can never read each other's K/V.

The cache holds no reference to a block. A published block that nobody uses waits in the pool's free queue and can be
matched until the pool hands it out again (``evict``); the queue's order makes that least recently used first.

Source: vLLM's automatic prefix caching (hash chains over blocks); SGLang's RadixAttention is the tree-shaped relative.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


def chain_root(*salts: str | None) -> bytes:
    """The hash before the first block: of everything besides the tokens that K/V depends on."""
    return blake2b(repr(salts).encode(), digest_size=16).digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Name of a full block that follows the block named ``parent``. 128 bits of BLAKE2b: collisions cannot be built."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class PrefixCache:
    """A two-way table between block hashes and block ids.

    touched   blocks published or evicted, for whoever watches and empties it; None: nobody does
    """

    def __init__(self) -> None:
        self.touched: set[int] | None = None
        self._block_of: dict[bytes, int] = {}
        self._entry_of: dict[int, tuple[bytes, bytes]] = {}  # its name, and its parent's

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest cached beginning of the chain."""
        blocks = []
        for name in hashes:
            block = self._block_of.get(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, name: bytes, block: int, parent: bytes = b"") -> None:
        """Offer a full, computed block. If another block already has this content, that one stays the published one.

        ``parent`` is the name of the block before it, which only inspectors ask for: ``match`` follows whole chains.
        """
        if name not in self._block_of:
            self._block_of[name] = block
            self._entry_of[block] = name, parent
            if self.touched is not None:
                self.touched.add(block)

    def evict(self, block: int) -> None:
        """Forget what a block held, if anything: it is about to be written anew."""
        entry = self._entry_of.pop(block, None)
        if entry is not None:
            del self._block_of[entry[0]]
            if self.touched is not None:
                self.touched.add(block)

    def clear(self) -> None:
        if self.touched is not None:
            self.touched.update(self._entry_of)
        self._block_of.clear()
        self._entry_of.clear()

    def __len__(self) -> int:
        return len(self._entry_of)

    def entry(self, block: int) -> tuple[bytes, bytes] | None:
        """A block's name and its parent's; None if it is not published."""
        return self._entry_of.get(block)

    def entries(self) -> dict[int, tuple[bytes, bytes]]:
        """All published blocks: block -> (name, parent's name)."""
        return dict(self._entry_of)

    def items(self) -> list[tuple[bytes, int]]:
        """(hash, block) pairs, for inspectors and tests."""
        return list(self._block_of.items())
