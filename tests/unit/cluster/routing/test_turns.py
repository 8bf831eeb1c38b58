"""A call keeps its turn while Serve looks for a place, so that ties go round by calls and not by rankings."""

from __future__ import annotations

from collections import Counter

from cluster.routing.turns import Turns, rank_by

_NAMES = ["a", "b"]


def test_a_call_that_is_ranked_twice_is_one_turn() -> None:
    turns = Turns()
    first = Counter[str]()
    for number in range(10):
        for _ in range(2):
            ranked = rank_by(_NAMES, lambda name: 0, turns.of(str(number)))
        turns.end(str(number))
        first[ranked[0]] += 1
    assert first == {"a": 5, "b": 5}


def test_calls_that_never_find_a_place_are_forgotten() -> None:
    turns = Turns()
    for number in range(10_000):
        turns.of(str(number))
    assert len(turns._open) < 5000
