"""PrefixCache: names stand for whole prefixes, and a name is forgotten when its block is written anew."""

from __future__ import annotations

from quire.reference.control.prefix_cache import PrefixCache, block_hash, chain_root


def chain(*blocks: list[int], salt: str | None = None) -> list[bytes]:
    names = [chain_root(salt)]
    for tokens in blocks:
        names.append(block_hash(names[-1], tokens))
    return names[1:]


def test_equal_blocks_after_different_beginnings_have_different_names() -> None:
    assert chain([1, 2], [3, 4])[1] != chain([9, 9], [3, 4])[1]
    assert chain([1, 2], [3, 4]) == chain([1, 2], [3, 4])
    assert chain([1], [2, 3])[1] != chain([1, 2], [3])[1]


def test_salts_are_worlds_apart() -> None:
    assert not set(chain([1, 2], [3, 4])) & set(chain([1, 2], [3, 4], salt="tenant"))
    assert chain_root("a", "b") != chain_root("ab")


def test_the_longest_cached_beginning_is_found() -> None:
    cache = PrefixCache()
    a, b, c = chain([1], [2], [3])
    cache.publish(a, 10)
    cache.publish(c, 12)  # its predecessor is missing, so it cannot be reached
    assert cache.match([a, b, c]) == [10]
    cache.publish(b, 11)
    assert cache.match([a, b, c]) == [10, 11, 12]


def test_the_first_block_with_a_content_stays_the_published_one() -> None:
    cache = PrefixCache()
    (a,) = chain([1])
    cache.publish(a, 10)
    cache.publish(a, 11)
    assert cache.match([a]) == [10]
    cache.evict(11)  # was never published: nothing happens
    assert cache.match([a]) == [10]


def test_an_evicted_block_is_found_no_more() -> None:
    cache = PrefixCache()
    a, b = chain([1], [2])
    cache.publish(a, 10)
    cache.publish(b, 11)
    cache.evict(10)
    assert cache.match([a, b]) == [] and len(cache) == 1
