"""What is ours is counted exactly, what is others' by report, and neither twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.routing.ledger import Ledger


def test_what_others_sent_shows_until_a_report_without_it() -> None:
    ledger = Ledger()
    ledger.place("1", "a", 100)
    ledger.report({"a": 300})
    assert ledger.load("a") == 400
    ledger.end("1")
    ledger.report({"a": 300})  # the same one, looked at again
    assert ledger.load("a") == 300
    ledger.report({"a": 0})
    assert ledger.load("a") == 0


def test_a_call_is_at_one_replica() -> None:
    ledger = Ledger()
    ledger.place("1", "a", 10)
    ledger.place("1", "b", 10)
    assert (ledger.load("a"), ledger.load("b")) == (0, 10)
    ledger.end("1")
    ledger.end("1")
    ledger.end("unknown")
    assert ledger.load("b") == 0


def test_calls_of_a_replica_that_is_gone_end_without_a_trace() -> None:
    ledger = Ledger()
    ledger.place("1", "a", 10)
    ledger.keep(["b"])
    ledger.end("1")
    ledger.keep(["b"])
    assert ledger.load("a") == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(1, 50), st.booleans()), max_size=60))
def test_loads_are_the_sums_of_what_is_placed(steps: list[tuple[int, str, int, bool]]) -> None:
    ledger = Ledger()
    placed: dict[str, tuple[str, int]] = {}
    for number, name, cost, ends in steps:
        if ends:
            ledger.end(str(number))
            placed.pop(str(number), None)
        else:
            ledger.place(str(number), name, cost)
            placed[str(number)] = name, cost
        for each in "ab":
            assert ledger.load(each) == sum(cost for name, cost in placed.values() if name == each)
