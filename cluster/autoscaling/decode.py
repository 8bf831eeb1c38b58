"""The decode stage's policy: how full the KV caches are and how long a token takes (TPOT), against targets.

The KV caches in use, in sum, over `target_kv_cache_use` are the replicas needed for memory. For speed, n replicas whose
tokens take `tpot` seconds need n * tpot / target_tpot_s, since a step takes longer the more sequences share it; but
never more replicas than there are sequences, and never more than twice the present ones at once, since the time of a
step does not go to zero with its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.autoscaling.load import StageLoad, positive, ratio
from cluster.autoscaling.policy import StagePolicy
from cluster.autoscaling.signals import (
    DECODE_NAMES,
    KV_CACHE_USE,
    SEQUENCES,
    TOKEN_GAPS,
    TOKEN_GAPS_S,
    ReplicaWindow,
    read_signals,
)

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_MAX_TPOT_GROWTH = 2.0


class DecodeLoadPolicy(StagePolicy):
    """A policy of one deployment, as Ray Serve calls it; `decode_load` for short."""

    def __init__(
        self,
        target_kv_cache_use: float = 0.7,
        target_tpot_s: float | None = None,
        shrink_margin: float = 0.25,
        max_signal_age_s: float = 30.0,
    ) -> None:
        """Args:
            target_kv_cache_use: part of each KV cache that is to be in use, above 0 and at most 1.
            target_tpot_s: mean time between two tokens of a sequence that is wanted; None: only memory counts.
            shrink_margin, max_signal_age_s: as `StagePolicy` takes them.

        Raises:
            ValueError: one of them is out of its range.
        """
        super().__init__(shrink_margin, max_signal_age_s)
        self.target_kv_cache_use = ratio("target_kv_cache_use", target_kv_cache_use)
        self.target_tpot_s = None if target_tpot_s is None else positive("target_tpot_s", target_tpot_s)

    def load(self, context: AutoscalingContext) -> StageLoad:
        """What the stage needs now. Nothing waits apart from it: what waits shows in the caches."""
        window = read_signals(context, DECODE_NAMES, self.max_signal_age_s)
        memory = sum(replica.latest(KV_CACHE_USE) for replica in window.replicas) / self.target_kv_cache_use
        peak = sum(replica.peak(KV_CACHE_USE) for replica in window.replicas) / self.target_kv_cache_use
        # Up by the newest steps alone: those from before the last replica came would ask for one more at once.
        speed = self._for_speed(window.replicas, ReplicaWindow.last_increase)
        peak = max(peak, speed, self._for_speed(window.replicas, ReplicaWindow.increase))
        demand = max(memory, speed)
        return StageLoad(demand, demand, peak, window.complete, {})

    def _for_speed(self, replicas: tuple[ReplicaWindow, ...], increase: Callable[[ReplicaWindow, str], float]) -> float:
        num_gaps = sum(increase(replica, TOKEN_GAPS) for replica in replicas)
        if self.target_tpot_s is None or num_gaps <= 0:
            return 0.0
        tpot_s = sum(increase(replica, TOKEN_GAPS_S) for replica in replicas) / num_gaps
        num_sequences = sum(replica.latest(SEQUENCES) for replica in replicas)
        return min(num_sequences, len(replicas) * min(_MAX_TPOT_GROWTH, tpot_s / self.target_tpot_s))
