"""A replica that calls do not reach is left alone, longer each time, and comes back with the first call it takes."""

from __future__ import annotations

from cluster.routing.pauses import FailurePauses


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _pause_of(pauses: FailurePauses, clock: _Clock) -> float:
    """Let the pause of "a" end; how long it was."""
    begun = clock.now
    while pauses.is_paused("a"):
        clock.now += 0.25
    return clock.now - begun


def test_pauses_grow_to_a_bound_and_end_with_a_call() -> None:
    clock = _Clock()
    pauses = FailurePauses(clock)
    lengths = []
    for _ in range(8):
        pauses.failed("a")
        lengths.append(_pause_of(pauses, clock))
    assert lengths == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    pauses.took("a")
    assert not pauses.is_paused("a")
    pauses.failed("a")
    assert _pause_of(pauses, clock) == 0.5


def test_many_calls_that_fail_at_once_are_one_failure() -> None:
    clock = _Clock()
    pauses = FailurePauses(clock)
    for _ in range(50):
        pauses.failed("a")
    assert _pause_of(pauses, clock) == 0.5
    assert not pauses.is_paused("b")


def test_a_replica_that_is_gone_is_forgotten() -> None:
    pauses = FailurePauses(_Clock())
    pauses.failed("a")
    pauses.keep(["b"])
    assert not pauses.is_paused("a")
