"""KVManager: sequences get blocks all or nothing, share them by forks and prefixes, and copy before a shared write."""

from __future__ import annotations

from quire.reference.control.kv_manager import BlockTable, KVManager
from quire.reference.control.plan import Swap


def manager(num_blocks: int = 9, block_size: int = 4, **kwargs: int | bool) -> KVManager:
    return KVManager(num_blocks, block_size, **kwargs)  # type: ignore[arg-type]


def filled(kv: KVManager, tokens: list[int]) -> BlockTable:
    """A sequence whose tokens are all computed and published."""
    table = kv.new_table()
    assert kv.admit(table, tokens, len(tokens)) is not None
    kv.commit(table, tokens, len(tokens))
    return table


def test_a_sequence_grows_by_a_block_whenever_the_last_one_is_full() -> None:
    kv, table = manager(), BlockTable()
    sizes = []
    for position in range(9):
        grant = kv.reserve(table, position, 1)
        assert grant is not None and not grant.copies
        sizes.append(len(grant.new_blocks))
    assert sizes == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_reserve_that_cannot_be_met_changes_nothing() -> None:
    kv, table = manager(num_blocks=4), BlockTable()
    assert kv.reserve(table, 0, 8) is not None
    before = list(table.blocks), list(kv.pool.refs), kv.pool.num_free
    assert kv.reserve(table, 8, 9) is None
    assert before == (table.blocks, kv.pool.refs, kv.pool.num_free)


def test_lookahead_reserves_room_for_drafts() -> None:
    kv, table = manager(), BlockTable()
    grant = kv.reserve(table, 0, 3, lookahead=2)
    assert grant is not None and len(grant.new_blocks) == 2


def test_a_fork_shares_everything_and_the_first_writer_copies_the_tail() -> None:
    kv = manager()
    parent = filled(kv, [1, 2, 3, 4, 5, 6])
    child = kv.fork(parent, 6)
    full, tail = parent.blocks
    assert child.blocks == [full, tail] and kv.pool.refs[full] == kv.pool.refs[tail] == 2

    grant = kv.reserve(parent, 6, 1)
    assert grant is not None and grant.new_blocks == []
    ((src, dst, index),) = grant.copies
    assert (src, index) == (tail, 1) and parent.blocks == [full, dst]
    assert kv.pool.refs[tail] == kv.pool.refs[dst] == 1

    grant = kv.reserve(child, 6, 1)  # the last holder writes in place
    assert grant is not None and grant.copies == [] and child.blocks == [full, tail]


def test_a_cached_prefix_is_shared_and_only_the_rest_is_computed() -> None:
    kv = manager()
    first = filled(kv, list(range(10)))
    table = kv.new_table()
    admission = kv.admit(table, [*range(8), 77, 78, 79], budget=100)
    assert admission is not None
    assert (admission.start, admission.end, admission.write) == (8, 11, True)
    assert table.blocks[:2] == first.blocks[:2] and table.blocks[2] != first.blocks[2]


def test_a_prompt_that_is_cached_whole_recomputes_one_token_without_writing() -> None:
    kv = manager()
    filled(kv, list(range(8)))
    admission = kv.admit(kv.new_table(), list(range(8)), budget=100)
    assert admission is not None
    assert (admission.start, admission.end, admission.write) == (7, 8, False)


def test_another_salt_finds_nothing() -> None:
    kv = manager()
    filled(kv, list(range(8)))
    admission = kv.admit(kv.new_table("tenant"), list(range(8)), budget=100)
    assert admission is not None and admission.start == 0


def test_freed_blocks_stay_in_the_cache_until_they_are_needed_tail_first() -> None:
    kv = manager(num_blocks=5)
    table = filled(kv, list(range(16)))
    blocks = list(table.blocks)
    kv.release(table)
    assert kv.pool.num_free == 4 and kv.prefix is not None and len(kv.prefix) == 4
    other = kv.new_table()
    assert kv.reserve(other, 0, 8) is not None
    assert other.blocks == [blocks[3], blocks[2]]  # the end of the old sequence went first
    kv.release(other)
    admission = kv.admit(kv.new_table(), list(range(16)), budget=100)
    assert admission is not None and admission.start == 8


def test_an_admission_counts_cached_blocks_that_leave_the_free_queue() -> None:
    kv = manager(num_blocks=5)
    kv.release(filled(kv, list(range(8))))
    table = kv.new_table()
    # Two blocks are cached and free, two more are free: 12 new tokens would need three of those two.
    assert kv.admit(table, list(range(20)), budget=100) is None
    assert table.blocks == [] and kv.pool.num_free == 4
    assert kv.admit(table, list(range(16)), budget=100) is not None


def test_only_full_verified_blocks_are_published() -> None:
    kv = manager()
    table = kv.new_table()
    kv.admit(table, list(range(8)), 100)
    assert kv.prefix is not None
    kv.commit(table, list(range(8)), 3)
    assert len(kv.prefix) == 0
    kv.commit(table, list(range(8)), 7)
    assert len(kv.prefix) == 1


def test_swapping_out_frees_the_device_and_swapping_in_brings_the_blocks_back() -> None:
    kv = manager(num_host_blocks=2)
    table = filled(kv, list(range(6)))
    blocks = list(table.blocks)
    swaps = kv.swap_out(table, 6)
    assert swaps is not None and [s.device for s in swaps] == blocks
    assert kv.pool.num_used == 0 and kv.host_pool.num_used == 2
    admission = kv.swap_in(table, num_computed=6, num_tokens=7, budget=10)
    assert admission is not None and (admission.start, admission.end, admission.write) == (6, 7, True)
    assert admission.swap_in == [Swap(d, s.host) for d, s in zip(table.blocks, swaps, strict=True)]
    assert kv.host_pool.num_used == 0


def test_a_full_swap_space_refuses_and_changes_nothing() -> None:
    kv = manager(num_host_blocks=1)
    table = filled(kv, list(range(6)))
    assert kv.swap_out(table, 6) is None
    assert len(table.blocks) == 2 and kv.host_pool.num_used == 0
