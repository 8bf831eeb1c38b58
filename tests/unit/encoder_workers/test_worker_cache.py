"""Guards: a cache that grows past its budget, forgets what is used, or counts wrongly."""

import torch

from encoder_workers.cache import ArenaEmbedding, EmbeddingCache
from transfer import HostEmbedding


def rows(number: int) -> HostEmbedding:
    return HostEmbedding.of(torch.zeros(number, 4))


ROW = rows(1)


def test_what_is_kept_comes_back_itself() -> None:
    cache = EmbeddingCache(10 * ROW.nbytes)
    assert cache.get("a") is None
    embedding = rows(2)
    cache.put("a", embedding)
    assert cache.get("a") is embedding
    assert (cache.num_hits, cache.num_misses, cache.held_bytes) == (1, 1, embedding.nbytes)


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    cache = EmbeddingCache(3 * ROW.nbytes)
    for key in "abc":
        cache.put(key, rows(1))
    assert cache.get("a") is not None
    cache.put("d", rows(1))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("e", rows(3))
    assert [key for key in "abcde" if cache.get(key) is not None] == ["e"]
    assert cache.held_bytes == 3 * ROW.nbytes


def test_what_is_larger_than_the_budget_displaces_nothing() -> None:
    cache = EmbeddingCache(2 * ROW.nbytes)
    cache.put("a", rows(1))
    cache.put("big", rows(3))
    assert cache.get("big") is None
    assert cache.get("a") is not None


def test_a_key_that_is_there_is_counted_once() -> None:
    cache = EmbeddingCache(4 * ROW.nbytes)
    first = rows(1)
    cache.put("a", first)
    cache.put("a", rows(1))
    assert cache.get("a") is first
    assert cache.held_bytes == ROW.nbytes


def test_only_what_the_cache_alone_keeps_in_the_arena_makes_room() -> None:
    """The least recently used first; what transfers need would stay, and ordinary memory is no part of the arena."""
    cache = EmbeddingCache(10 * ROW.nbytes)
    cache.put("ordinary", rows(1))
    arena = {key: ArenaEmbedding(ROW.memory, ROW.shape, ROW.dtype) for key in ("lent", "older", "newer")}
    for key, embedding in arena.items():
        cache.put(key, embedding)
    first, second = arena["lent"].lend(), arena["lent"].lend()
    assert cache.make_room()
    assert [key for key in ("ordinary", *arena) if cache.get(key) is not None] == ["ordinary", "lent", "newer"]
    del first
    assert cache.make_room()
    assert not cache.make_room()
    del second
    assert cache.make_room()
    assert cache.get("ordinary") is not None
    assert cache.held_bytes == ROW.nbytes
