"""What the policies of one stage share: a load that is measured, and the number of replicas that follows from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from cluster.autoscaling.load import StageLoad, choose_replicas, positive

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


class StagePolicy(ABC):
    """A policy of one deployment, as Ray Serve calls it."""

    def __init__(self, shrink_margin: float, max_signal_age_s: float) -> None:
        """Args:
            shrink_margin: part of the load that must fit besides it before there are fewer replicas.
            max_signal_age_s: a replica that has said nothing for longer is taken for silent.

        Raises:
            ValueError: one of them is out of its range.
        """
        self.shrink_margin = positive("shrink_margin", shrink_margin)
        self.max_signal_age_s = positive("max_signal_age_s", max_signal_age_s)

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, float]]:
        """The number of replicas, and what the next call is to know."""
        load = self.load(context)
        return choose_replicas(context, load, self.shrink_margin), load.state

    @abstractmethod
    def load(self, context: AutoscalingContext) -> StageLoad:
        """What the stage needs now."""
