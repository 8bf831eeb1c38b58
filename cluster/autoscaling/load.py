"""What a stage's signals say of its load, in replicas, and the number of replicas that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

# Floating-point sums a little above a whole number are that number of replicas.
_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class StageLoad:
    """How many replicas a stage needs, as measured.

    Attributes:
        flow: for the work that it does now.
        demand: for that and for what waits.
        peak: as `demand`, with the most that has waited in the window.
        complete: nothing was missing; otherwise the numbers are lower bounds.
        state: what the next measurement needs of this one.
    """

    flow: float
    demand: float
    peak: float
    complete: bool
    state: dict[str, float]


def choose_replicas(context: AutoscalingContext, load: StageLoad, shrink_margin: float) -> int:
    """The number of replicas for this load: up at once, down only when it is certain that fewer are enough.

    Down means: every running replica has reported lately, all replicas asked for are running, and even the window's
    peak and a part `shrink_margin` of it would fit; then at most to the half. Ray's delays come on top of this.
    """
    present = int(context.target_num_replicas)
    wanted = present
    if _whole(load.demand) > present:
        wanted = _whole(load.demand)
    elif load.complete and context.current_num_replicas >= present:
        fewest = 1 if context.total_num_requests > 0 else 0
        wanted = min(present, max(_whole(load.peak * (1 + shrink_margin)), math.ceil(present / 2), fewest))
        if present == 1 and load.peak == 0 and not fewest:
            wanted = 0
    lowest, highest = int(context.capacity_adjusted_min_replicas), int(context.capacity_adjusted_max_replicas)
    return max(lowest, min(highest, wanted))


def positive(name: str, value: float) -> float:
    """`value`, which a person has set.

    Raises:
        ValueError: it is no positive number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return float(value)


def ratio(name: str, value: float) -> float:
    """`value`, which a person has set, above 0 and at most 1.

    Raises:
        ValueError: it is not.
    """
    if positive(name, value) > 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
    return float(value)


def _whole(replicas: float) -> int:
    return math.ceil(replicas - _EPSILON)
