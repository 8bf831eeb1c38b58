"""The base of the policies for stages that compute: seconds of work that wait, against a target.

With Q tokens waiting, one busy replica computing r tokens a second, and the replicas busy for a part u of the time in
sum, the stage needs the larger of Q / (r * target_backlog_s) and u / target_utilization replicas. The first answers a
burst; the second keeps, when nothing waits, what is needed so that nothing does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.autoscaling.load import StageLoad, positive, ratio
from cluster.autoscaling.policy import StagePolicy
from cluster.autoscaling.signals import BACKLOG_NAMES, BUSY_S, DONE_TOKENS, QUEUED_TOKENS, read_signals

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_RATE = "triptych_rate"


class BacklogPolicy(StagePolicy):
    """A policy of one deployment, as Ray Serve calls it."""

    def __init__(
        self,
        target_backlog_s: float,
        target_utilization: float,
        shrink_margin: float,
        max_signal_age_s: float,
    ) -> None:
        """Args:
            target_backlog_s: seconds of work that may wait for each replica.
            target_utilization: part of the time that a replica is to be busy, above 0 and at most 1.
            shrink_margin, max_signal_age_s: as `StagePolicy` takes them.

        Raises:
            ValueError: one of them is out of its range.
        """
        super().__init__(shrink_margin, max_signal_age_s)
        self.target_backlog_s = positive("target_backlog_s", target_backlog_s)
        self.target_utilization = ratio("target_utilization", target_utilization)

    def load(self, context: AutoscalingContext) -> StageLoad:
        """What the stage needs now."""
        window = read_signals(context, BACKLOG_NAMES, self.max_signal_age_s)
        busy_s = sum(replica.increase(BUSY_S) for replica in window.replicas)
        done = sum(replica.increase(DONE_TOKENS) for replica in window.replicas)
        # An idle window says nothing of the rate: what was measured last still holds.
        rate = done / busy_s if done > 0 and busy_s > 0 else float(context.policy_state.get(_RATE, 0.0))
        flow = sum(replica.share(BUSY_S) for replica in window.replicas) / self.target_utilization
        queued = sum(replica.latest(QUEUED_TOKENS) for replica in window.replicas)
        peak = sum(replica.peak(QUEUED_TOKENS) for replica in window.replicas)
        if rate == 0.0:
            # Nothing was ever computed here: what waits is not yet so many seconds, but nothing to do away with either.
            return StageLoad(flow, flow, flow, window.complete and peak == 0, {})
        per_replica = rate * self.target_backlog_s
        return StageLoad(
            flow, max(flow, queued / per_replica), max(flow, peak / per_replica), window.complete, {_RATE: rate}
        )
