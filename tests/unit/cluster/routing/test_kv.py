"""Decode: sequences are spread by the cache that they take, and a full cache takes none while another has room."""

from __future__ import annotations

from collections import Counter

from cluster.routing.kv import LeastKVRouter
from cluster.routing.senders import SENDER
from tests.unit.cluster.routing.routing_fleet import Fleet, decode_of

_NAMES = ["a", "b"]


def test_long_prompts_and_short_ones_fill_both_caches_alike() -> None:
    fleet = Fleet(LeastKVRouter, _NAMES)
    tokens: Counter[str] = Counter()
    for number in range(200):
        length = 8000 if number % 8 == 0 else 50
        tokens[fleet.send(decode_of(length), lambda name: 1e9)] += length + 256
    assert max(tokens.values()) - min(tokens.values()) <= 8256


def test_a_nearly_full_cache_takes_nothing_while_another_has_room() -> None:
    """Even where the other one has more tokens: its cache is larger."""
    fleet = Fleet(LeastKVRouter, _NAMES)
    fleet.reports["a"] = {"kv_cache_tokens": 10_000, "kv_cache_use": 0.95}
    fleet.reports["b"] = {"kv_cache_tokens": 100_000, "kv_cache_use": 0.5}
    assert {fleet.send(decode_of(10), lambda name: 1e9) for _ in range(20)} == {"b"}


def test_a_cache_fills_by_what_was_sent_before_any_report_says_so() -> None:
    fleet = Fleet(LeastKVRouter, _NAMES)
    fleet.reports["a"] = {"kv_cache_tokens": 4_000}
    fleet.reports["b"] = {"kv_cache_tokens": 40_000}
    taken = [fleet.send(decode_of(744, max_tokens=256), lambda name: 1e9) for _ in range(30)]
    assert taken.count("a") == 4  # the fourth fills it beyond nine tenths


def test_when_all_are_full_the_one_with_the_least_takes_it() -> None:
    fleet = Fleet(LeastKVRouter, _NAMES)
    fleet.reports["a"] = {"kv_cache_tokens": 10_000, "kv_cache_use": 0.99}
    fleet.reports["b"] = {"kv_cache_tokens": 10_000, "kv_cache_use": 0.92}
    assert fleet.send(decode_of(10)) == "b"


def test_an_answer_is_counted_no_longer_than_it_may_be() -> None:
    fleet = Fleet(LeastKVRouter, _NAMES)
    taken = [fleet.send(decode_of(10, max_tokens=1), lambda name: 1e9) for _ in range(20)]
    fleet.send(decode_of(10), lambda name: 1e9)  # as much as two dozen of the others
    then = [fleet.send(decode_of(10, max_tokens=1), lambda name: 1e9) for _ in range(20)]
    assert Counter(taken) == {"a": 10, "b": 10}
    assert len(set(then)) == 1


def test_answers_that_grew_beyond_what_they_were_counted_with_count() -> None:
    """Each has one sequence of ours; that of a is thousands of tokens long by now."""
    fleet = Fleet(LeastKVRouter, _NAMES)
    for _ in _NAMES:
        fleet.send(decode_of(100), lambda name: 1e9)
    fleet.reports["a"] = {"costs": {SENDER: 356.0}, "kv_cache_tokens": 100_000, "uncounted_tokens": 4644}
    assert {fleet.send(decode_of(100), lambda name: 1e9) for _ in range(10)} == {"b"}
