"""Decides for one pass which items are split over the group and which are placed whole on a rank.

Whole items go longest first to the least loaded rank (Graham's LPT rule). Splitting evens out any load, but its
attention is exchanged between the ranks; so an item is split only where that makes the longest rank shorter still.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_CRUMB = 0.05
"""Items of less than this part of the whole are not tried: no split gains more than the item's own cost."""


def place_items(costs: Sequence[float], split_costs: Sequence[float | None], num_ranks: int) -> tuple[int | None, ...]:
    """The rank of each item, None for those to split.

    Args:
        costs: of each item on one rank; not negative.
        split_costs: of each item on every rank when it is split; None where it has too few places to be cut at.
    """
    by_cost = sorted(range(len(costs)), key=lambda index: (-costs[index], index))
    candidates = [index for index in by_cost if split_costs[index] is not None]
    best = _place(costs, split_costs, by_cost, frozenset(), num_ranks)
    for num_split in range(1, len(candidates) + 1):
        if costs[candidates[num_split - 1]] * num_ranks < _CRUMB * sum(costs):
            break
        placed = _place(costs, split_costs, by_cost, frozenset(candidates[:num_split]), num_ranks)
        if placed[0] < best[0]:
            best = placed
    return best[1]


def _place(
    costs: Sequence[float],
    split_costs: Sequence[float | None],
    by_cost: Sequence[int],
    split: frozenset[int],
    num_ranks: int,
) -> tuple[float, tuple[int | None, ...]]:
    """Load of the longest rank, and the rank of each item."""
    ranks: list[int | None] = [None] * len(costs)
    loads = [(0.0, rank) for rank in range(num_ranks)]
    for index in by_cost:
        if index not in split:
            load, rank = heapq.heappop(loads)
            ranks[index] = rank
            heapq.heappush(loads, (load + costs[index], rank))
    shared = sum(split_costs[index] or 0.0 for index in split)
    return shared + max(load for load, _ in loads), tuple(ranks)
