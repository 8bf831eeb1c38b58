"""The application's policy: all stages follow the one that has the most to catch up with, in proportion to their work.

A stage that lacks replicas starves those behind it: they look idle, and find out that they are too few only when it has
grown. But what flows through all stages at the same time is the same requests, so the replicas that each needs for the
present flow are in the proportion of the work per request. When one stage needs g times what its flow needs, all are
given g times theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

from cluster.autoscaling.decode import DecodeLoadPolicy
from cluster.autoscaling.encoder import EncoderBacklogPolicy
from cluster.autoscaling.load import StageLoad, choose_replicas, positive
from cluster.autoscaling.policy import StagePolicy
from cluster.autoscaling.prefill import PrefillBacklogPolicy

if TYPE_CHECKING:
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

# Less than this of a replica's time is no flow to measure proportions by.
_LEAST_FLOW = 0.05


class BalancedStagesPolicy:
    """A policy of the whole application, as Ray Serve calls it; `balanced_stages` for short.

    It decides for the stages that have `autoscaling`. The ingress, when it has it, follows Ray's own policy.
    """

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        prefill: dict[str, Any] | None = None,
        decode: dict[str, Any] | None = None,
        max_growth: float = 2.0,
    ) -> None:
        """Args:
            encoder, prefill, decode: arguments of each stage's own policy, by which its load is measured.
            max_growth: how much a stage may be given ahead of its own load, as a multiple of its present flow.

        Raises:
            ValueError, TypeError: an argument is out of its range, or unknown.
        """
        self._stages: dict[str, StagePolicy] = {
            "encoder": EncoderBacklogPolicy(**(encoder or {})),
            "prefill": PrefillBacklogPolicy(**(prefill or {})),
            "decode": DecodeLoadPolicy(**(decode or {})),
        }
        self._max_growth = positive("max_growth", max_growth)

    def __call__(
        self, contexts: dict[DeploymentID, AutoscalingContext]
    ) -> tuple[dict[DeploymentID, float], dict[DeploymentID, dict[str, Any]]]:
        """The number of replicas of every deployment, and what the next call is to know."""
        replicas: dict[DeploymentID, float] = {}
        state: dict[DeploymentID, dict[str, Any]] = {}
        loads: dict[DeploymentID, StageLoad] = {}
        for deployment, context in contexts.items():
            if context.deployment_name in self._stages:
                loads[deployment] = self._stages[context.deployment_name].load(context)
            else:
                replicas[deployment], state[deployment] = replica_queue_length_autoscaling_policy(context)
        growth = self._growth(contexts, loads)
        # Without the numbers of one stage nobody knows how much the others will be asked for.
        complete = all(load.complete for load in loads.values())
        for deployment, load in loads.items():
            lead = load.flow * growth
            balanced = replace(load, demand=max(load.demand, lead), peak=max(load.peak, lead), complete=complete)
            context = contexts[deployment]
            margin = self._stages[context.deployment_name].shrink_margin
            replicas[deployment] = choose_replicas(context, balanced, margin)
            state[deployment] = dict(load.state)
        return replicas, state

    def _growth(self, contexts: dict[DeploymentID, AutoscalingContext], loads: dict[DeploymentID, StageLoad]) -> float:
        """By how much the flow through all stages is to grow, 1 for not at all; no more than each can follow."""
        flowing = {deployment: load for deployment, load in loads.items() if load.flow >= _LEAST_FLOW}
        wanted = max((load.demand / load.flow for load in flowing.values()), default=1.0)
        possible = min(
            (contexts[deployment].capacity_adjusted_max_replicas / load.flow for deployment, load in flowing.items()),
            default=1.0,
        )
        return max(1.0, min(wanted, possible, self._max_growth))
