"""BlockPool: references are counted, free blocks are reused least recently used first, block 0 is nobody's."""

from __future__ import annotations

from quire.reference.control.block_pool import BlockPool


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(4)
    assert pool.num_blocks == pool.num_free == 3
    assert sorted(pool.allocate(3)) == [1, 2, 3]  # all but block 0
    assert pool.num_free == 0


def test_a_block_is_free_when_its_last_holder_has_gone() -> None:
    pool = BlockPool(4)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.release([block])
    assert pool.refs[block] == 1 and pool.num_free == 2
    pool.release([block])
    assert pool.refs[block] == 0 and pool.num_free == 3
    assert pool.total_refs == pool.num_used == 0


def test_free_blocks_come_back_in_the_order_in_which_they_were_freed() -> None:
    pool = BlockPool(5)
    a, b, c, d = pool.allocate(4)
    pool.release([c, a])
    pool.release([d, b])
    assert pool.allocate(4) == [c, a, d, b]


def test_a_cached_block_is_taken_out_of_the_middle_of_the_free_queue() -> None:
    pool = BlockPool(5)
    a, b, c, d = pool.allocate(4)
    pool.release([a, b, c, d])
    pool.share([b])
    assert pool.refs[b] == 1
    assert pool.allocate(3) == [a, c, d]
