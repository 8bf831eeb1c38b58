"""The replica with the fewest requests comes first, and equal ones take turns."""

from __future__ import annotations

from collections import Counter

from cluster.routing.outstanding import LeastOutstandingRouter
from cluster.routing.turns import rank_by
from tests.unit.cluster.routing.routing_fleet import Fleet, decode_of


def test_least_loaded_first() -> None:
    loads = {"a": 3, "b": 1, "c": 2}
    for turn in range(4):
        assert rank_by(["a", "b", "c"], loads.__getitem__, turn) == ["b", "c", "a"]


def test_equal_ones_take_turns() -> None:
    first = [rank_by(["a", "b"], lambda name: 0, turn)[0] for turn in range(10)]
    assert Counter(first) == {"a": 5, "b": 5}


def test_no_replicas() -> None:
    assert rank_by([], lambda name: 0, turn=3) == []


def test_a_slow_replica_gets_fewer() -> None:
    """One takes ten times as long: what it gets is what it can do."""
    fleet = Fleet(LeastOutstandingRouter, ["fast", "slow"])
    taken: Counter[str] = Counter()
    for _ in range(400):
        taken[fleet.send(decode_of(10), lambda name: 0.1 if name == "fast" else 1.0)] += 1
        fleet.advance(0.05)
    assert taken["slow"] < 0.25 * taken["fast"]
