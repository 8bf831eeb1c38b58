"""One rank's part of a pass: the plan that all ranks make alike, its rows through the tower, its tokens in place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from encoder_workers.interface import SplitTower
from encoder_workers.media import Prepared
from encoder_workers.ranks.placement import place_items
from encoder_workers.ranks.rates import Rates
from encoder_workers.shares import Share, even_bounds, whole


def plan_shares(
    tower: SplitTower, batch: Sequence[Prepared], rank: int, num_ranks: int, rates: Rates
) -> list[tuple[int, Share]]:
    """This rank's shares with the index of their item: the items it has whole, then its shares of those split."""
    shapes = [tower.shape(item) for item in batch]
    bounds = [even_bounds(shape.cuts, num_ranks) for shape in shapes]
    model, exchange_s = rates.seconds(tower.costs), rates.exchange_per_row(tower.costs)
    costs = [model.of(shape) for shape in shapes]
    longest = [max(b - a for a, b in itertools.pairwise(bound)) if bound else None for bound in bounds]
    split_costs = [
        rows * (cost / shape.num_rows + exchange_s) if rows else None
        for rows, cost, shape in zip(longest, costs, shapes, strict=True)
    ]
    ranks = place_items(costs, split_costs, num_ranks)
    shares = [(index, whole(batch[index], shapes[index])) for index, owner in enumerate(ranks) if owner == rank]
    for index, (owner, bound) in enumerate(zip(ranks, bounds, strict=True)):
        if owner is None:
            assert bound is not None
            shares.append((index, Share(batch[index], bound, rank)))
    return shares


def run_pass(
    tower: SplitTower,
    batch: Sequence[Prepared],
    outputs: Sequence[torch.Tensor],
    rank: int,
    num_ranks: int,
    rates: Rates,
) -> int:
    """Compute this rank's share of a batch into `outputs`, [num_tokens, width] on the host; returns its rows.

    A rank without a share has nothing to do: items are only split where each rank gets some of them.
    """
    shares = plan_shares(tower, batch, rank, num_ranks, rates)
    if not shares:
        return 0
    tokens = tower.forward_shares([share for _, share in shares])
    for (index, share), rows in zip(shares, tokens, strict=True):
        outputs[index].index_copy_(0, tower.places(share), rows.to("cpu"))
    return sum(share.num_rows for _, share in shares)
