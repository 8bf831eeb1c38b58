"""Cuts a list of items into forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Sequence


def plan_passes(costs: Sequence[int], max_cost: int) -> list[list[int]]:
    """Indices of the items of each pass, in order, each pass at most `max_cost` unless one item alone is more.

    Costs are patches: activations of a packed pass grow with their sum.
    """
    if max_cost < 1:
        raise ValueError(f"max_cost must be positive, got {max_cost}")
    passes: list[list[int]] = []
    room = 0
    for index, cost in enumerate(costs):
        if not passes or cost > room:
            passes.append([])
            room = max_cost
        passes[-1].append(index)
        room -= cost
    return passes
