"""Decode: full caches and slow tokens ask for replicas, but no more of them than there are sequences."""

from __future__ import annotations

from cluster.autoscaling.decode import DecodeLoadPolicy
from tests.unit.cluster.autoscaling.simulated_fleet import Clock, DecodeStage, run


def test_full_caches_ask_for_more_and_empty_ones_for_fewer(clock: Clock) -> None:
    stage = DecodeStage("decode", clock, 1.0, max_replicas=6)
    run(stage, DecodeLoadPolicy(), 8.0, 300)
    assert 3 <= stage.target < 6
    use = sum(replica.queued for replica in stage.replicas) * stage.kv_per_sequence / stage.target
    assert use <= 0.7
    run(stage, DecodeLoadPolicy(), 0.2, 600)
    assert stage.target == 1


def test_slow_tokens_ask_for_more_where_memory_does_not(clock: Clock) -> None:
    stage = DecodeStage("decode", clock, 1.0)
    stage.kv_per_sequence = 1e-6
    run(stage, DecodeLoadPolicy(), 4.0, 240)
    assert stage.target == 1
    run(stage, DecodeLoadPolicy(target_tpot_s=0.025), 4.0, 240)
    assert 2 <= stage.target <= 4
    assert all(stage.tpot_s(replica) <= 0.025 for replica in stage.running())


def test_a_target_below_what_one_sequence_takes_does_not_run_away(clock: Clock) -> None:
    """No number of replicas makes a step shorter than that of a single sequence."""
    stage = DecodeStage("decode", clock, 1.0)
    stage.replicas[0].queued = 1.0
    stage.tokens_per_sequence = 10**9
    run(stage, DecodeLoadPolicy(target_tpot_s=0.001), 0.0, 300)
    assert set(stage.history) == {1}


def test_growth_is_bounded_at_each_decision(clock: Clock) -> None:
    stage = DecodeStage("decode", clock, 1.0, start_s=1000.0, max_replicas=100)
    stage.kv_per_sequence = 1e-6
    stage.tokens_per_sequence = 10**9
    stage.replicas[0].queued = 90.0
    run(stage, DecodeLoadPolicy(target_tpot_s=0.001), 0.0, 60)
    assert stage.target == 2


def test_a_silent_replica_never_leads_to_fewer(clock: Clock) -> None:
    stage = DecodeStage("decode", clock, 1.0, num_replicas=2)
    stage.replicas[1].silent = True
    run(stage, DecodeLoadPolicy(), 0.1, 600)
    assert set(stage.history) == {2}
