"""Guards: a cache that grows past its budget, forgets what is used, or counts wrongly."""

import torch

from encoder_workers.cache import EmbeddingCache

ROW = torch.zeros(1, 4)


def test_what_is_kept_comes_back_itself() -> None:
    cache = EmbeddingCache(10 * ROW.nbytes)
    assert cache.get("a") is None
    tensor = torch.ones(2, 4)
    cache.put("a", tensor)
    assert cache.get("a") is tensor
    assert (cache.num_hits, cache.num_misses, cache.held_bytes) == (1, 1, tensor.nbytes)


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    cache = EmbeddingCache(3 * ROW.nbytes)
    for key in "abc":
        cache.put(key, ROW.clone())
    assert cache.get("a") is not None
    cache.put("d", ROW.clone())
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("e", torch.zeros(3, 4))
    assert [key for key in "abcde" if cache.get(key) is not None] == ["e"]
    assert cache.held_bytes == 3 * ROW.nbytes


def test_what_is_larger_than_the_budget_displaces_nothing() -> None:
    cache = EmbeddingCache(2 * ROW.nbytes)
    cache.put("a", ROW.clone())
    cache.put("big", torch.zeros(3, 4))
    assert cache.get("big") is None
    assert cache.get("a") is not None


def test_a_key_that_is_there_is_counted_once() -> None:
    cache = EmbeddingCache(4 * ROW.nbytes)
    first = ROW.clone()
    cache.put("a", first)
    cache.put("a", ROW.clone())
    assert cache.get("a") is first
    assert cache.held_bytes == ROW.nbytes
