"""Encoder and prefill: fast up, slowly down, between the bounds, and never down on what nobody has said."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.autoscaling.encoder import EncoderBacklogPolicy
from cluster.autoscaling.prefill import PrefillBacklogPolicy
from tests.unit.cluster.autoscaling.simulated_fleet import Clock, Stage, run

RATE = 1000.0


def turns(history: list[int]) -> int:
    """How often the number of replicas went the other way."""
    moves = [later - earlier for earlier, later in pairwise(history) if later != earlier]
    return sum((a > 0) != (b > 0) for a, b in pairwise(moves))


@pytest.mark.parametrize("policy", [EncoderBacklogPolicy(), PrefillBacklogPolicy()])
def test_replicas_follow_a_step_of_load_up_and_down(clock: Clock, policy: EncoderBacklogPolicy) -> None:
    stage = Stage("encoder", clock, RATE)
    run(stage, policy, 0.5 * RATE, 60)
    assert stage.target == 1
    run(stage, policy, 3.0 * RATE, 120)
    # Enough for the flow at 80 % use, and what had piled up meanwhile is gone.
    assert 4 <= stage.target <= stage.config.max_replicas
    assert stage.queued() < RATE * policy.target_backlog_s * stage.target
    run(stage, policy, 0.5 * RATE, 600)
    assert stage.target == 1
    assert turns(stage.history) == 1
    assert stage.draining == []


def test_it_is_up_within_seconds_and_down_no_faster_than_the_delay(clock: Clock) -> None:
    stage = Stage("encoder", clock, RATE)
    run(stage, EncoderBacklogPolicy(), 0.5 * RATE, 60)
    run(stage, EncoderBacklogPolicy(), 8.0 * RATE, 10)
    assert stage.target == stage.config.max_replicas
    run(stage, EncoderBacklogPolicy(), 4.0 * RATE, 300)
    high = stage.target
    assert 5 <= high <= 7
    run(stage, EncoderBacklogPolicy(), 0.0, 59)
    assert stage.target == high
    run(stage, EncoderBacklogPolicy(), 0.0, 61)
    assert high // 2 <= stage.target < high


def test_bounds_hold_however_much_waits(clock: Clock) -> None:
    stage = Stage("encoder", clock, RATE, num_replicas=2, min_replicas=2, max_replicas=3)
    run(stage, EncoderBacklogPolicy(), 50 * RATE, 60)
    assert set(stage.history) <= {2, 3}
    assert stage.target == 3
    run(stage, EncoderBacklogPolicy(), 0.0, 3600)
    assert stage.target == 2


def test_replicas_that_keep_up_are_not_taken_away(clock: Clock) -> None:
    """Nothing waits since there are enough: that is no reason to have fewer."""
    stage = Stage("encoder", clock, RATE, num_replicas=4)
    run(stage, EncoderBacklogPolicy(), 3.1 * RATE, 600)
    assert set(stage.history) == {4}


@pytest.mark.parametrize("factor", [0.97, 1.0, 1.03])
def test_a_load_near_a_boundary_does_not_swing(clock: Clock, factor: float) -> None:
    """0.8 of two replicas is where a third is wanted."""
    stage = Stage("encoder", clock, RATE, num_replicas=2)
    for minute in range(20):
        run(stage, EncoderBacklogPolicy(), 1.6 * factor * (1.02 if minute % 2 else 0.98) * RATE, 60)
    assert turns(stage.history) == 0


def test_a_silent_replica_never_leads_to_fewer(clock: Clock) -> None:
    stage = Stage("encoder", clock, RATE, num_replicas=3)
    run(stage, EncoderBacklogPolicy(), 0.5 * RATE, 20)
    stage.replicas[1].silent = True
    run(stage, EncoderBacklogPolicy(), 0.0, 1200)
    assert set(stage.history) == {3}
    stage.replicas[1].silent = False
    run(stage, EncoderBacklogPolicy(), 0.0, 600)
    assert stage.target == 1


def test_a_silent_replica_does_not_keep_the_others_from_growing(clock: Clock) -> None:
    stage = Stage("encoder", clock, RATE, num_replicas=2)
    stage.replicas[0].silent = True
    run(stage, EncoderBacklogPolicy(), 4.0 * RATE, 60)
    assert stage.target > 2


def test_a_stage_that_has_said_nothing_yet_stays(clock: Clock) -> None:
    stage = Stage("encoder", clock, RATE, num_replicas=3)
    for replica in stage.replicas:
        replica.silent = True
    run(stage, EncoderBacklogPolicy(), 5.0 * RATE, 600)
    assert set(stage.history) == {3}


def test_what_waits_before_a_rate_was_measured_changes_nothing(clock: Clock) -> None:
    """The first pass of all may take long; how long the queue is in seconds is not known before its end."""
    stage = Stage("encoder", clock, 1e-9, num_replicas=2)
    for replica in stage.replicas:
        replica.queued = 100.0
    signals = stage.signals
    stage.signals = lambda replica: {**signals(replica), "triptych_done_tokens": 0.0, "triptych_busy_seconds": 0.0}  # type: ignore[method-assign]
    run(stage, EncoderBacklogPolicy(), 0.0, 600)
    assert set(stage.history) == {2}


def test_the_rate_is_remembered_over_a_pause(clock: Clock) -> None:
    """After an idle hour a burst is answered at once, not after the first passes were measured."""
    stage = Stage("encoder", clock, RATE)
    run(stage, EncoderBacklogPolicy(), 0.5 * RATE, 60)
    run(stage, EncoderBacklogPolicy(), 0.0, 3600)
    (replica,) = stage.replicas
    frozen = stage.signals(replica)
    # The first pass of the burst has not ended, so nothing new is known of the rate.
    stage.signals = lambda replica: {**frozen, "triptych_queued_tokens": 4 * RATE}  # type: ignore[method-assign]
    run(stage, EncoderBacklogPolicy(), 0.0, 5)
    assert stage.target == 4


def test_starting_replicas_are_not_counted_twice(clock: Clock) -> None:
    """While the replicas asked for load their weights, what waits asks for no more of them than at first."""
    stage = Stage("prefill", clock, RATE, start_s=300, max_replicas=100)
    stage.replicas[0].queued = 5 * RATE
    run(stage, PrefillBacklogPolicy(), 0.9 * RATE, 200)
    assert 5 <= stage.target <= 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_backlog_s": 0}, "target_backlog_s must be a positive number, not 0"),
        ({"target_utilization": 1.5}, "target_utilization must be above 0 and at most 1, not 1.5"),
        ({"shrink_margin": float("nan")}, "shrink_margin must be a positive number"),
        ({"max_signal_age_s": "60"}, "max_signal_age_s must be a positive number, not '60'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderBacklogPolicy(**arguments)
