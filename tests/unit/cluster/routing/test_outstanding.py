"""The least loaded replica comes first, and equal ones take turns."""

from __future__ import annotations

from collections import Counter

from cluster.routing.outstanding import rank_by_load


def test_least_loaded_first() -> None:
    assert rank_by_load(["a", "b", "c"], Counter(a=3, b=1, c=2), turn=0) == ["b", "c", "a"]


def test_equal_ones_take_turns() -> None:
    first = [rank_by_load(["a", "b"], Counter(), turn)[0] for turn in range(10)]
    assert Counter(first) == {"a": 5, "b": 5}


def test_a_turn_never_beats_a_lower_load() -> None:
    for turn in range(4):
        assert rank_by_load(["a", "b"], Counter(a=1), turn)[0] == "b"


def test_no_replicas() -> None:
    assert rank_by_load([], Counter(), turn=3) == []
