"""All stages together: in proportion to their work, ahead of their own queues, and none down while one is silent."""

from __future__ import annotations

from cluster.autoscaling.balanced import BalancedStagesPolicy
from tests.unit.cluster.autoscaling.simulated_fleet import Clock, Stage, run_line

ENCODER_RATE = 1000.0
PREFILL_RATE = 2000.0  # half the work per token


def line(clock: Clock, **encoder: int) -> list[Stage]:
    return [
        Stage("encoder", clock, ENCODER_RATE, **{"max_replicas": 16, "start_s": 20.0, **encoder}),
        Stage("prefill", clock, PREFILL_RATE, max_replicas=16, start_s=20.0),
    ]


def test_replicas_are_in_the_proportion_of_the_work(clock: Clock) -> None:
    stages = line(clock)
    run_line(stages, BalancedStagesPolicy(), 0.7 * ENCODER_RATE, 60)
    run_line(stages, BalancedStagesPolicy(), 6.0 * ENCODER_RATE, 600)
    encoder, prefill = (stage.target for stage in stages)
    assert 8 <= encoder <= 11
    assert 4 <= prefill <= 6
    assert all(stage.queued() < stage.rate * stage.target for stage in stages)
    run_line(stages, BalancedStagesPolicy(), 0.5 * ENCODER_RATE, 900)
    assert [stage.target for stage in stages] == [1, 1]


def test_a_stage_grows_with_the_one_that_feeds_it_before_its_own_queue_does(clock: Clock) -> None:
    """Alone it would begin only when the other has started, and its weights take their time to load as well."""
    stages = line(clock)
    encoder, prefill = stages
    run_line(stages, BalancedStagesPolicy(), 0.9 * ENCODER_RATE, 60)
    before = prefill.target
    run_line(stages, BalancedStagesPolicy(), 8.0 * ENCODER_RATE, 19)
    assert len(encoder.running()) == 2  # none of the new ones has started
    assert prefill.queued() < PREFILL_RATE
    assert encoder.target > 2
    assert prefill.target > before


def test_no_stage_grows_past_what_the_slowest_can_feed(clock: Clock) -> None:
    stages = line(clock, max_replicas=1)
    run_line(stages, BalancedStagesPolicy(), 20.0 * ENCODER_RATE, 300)
    assert [stage.target for stage in stages] == [1, 1]


def test_one_silent_stage_keeps_all_from_shrinking(clock: Clock) -> None:
    stages = line(clock)
    run_line(stages, BalancedStagesPolicy(), 3.0 * ENCODER_RATE, 300)
    high = [stage.target for stage in stages]
    for replica in stages[0].replicas:
        replica.silent = True
    run_line(stages, BalancedStagesPolicy(), 0.0, 900)
    assert [stage.target for stage in stages] == high


def test_other_deployments_follow_rays_own_policy(clock: Clock) -> None:
    """The ingress is part of the application, and what the stages publish says nothing of it."""
    ingress = Stage("ingress", clock, 1.0, num_replicas=2, target_ongoing_requests=0.25)
    ingress.replicas[0].queued = 1.0  # one request under way, where a quarter of one is aimed at
    replicas, _ = BalancedStagesPolicy()({ingress.deployment: ingress.context()})
    assert replicas == {ingress.deployment: 4.0}
