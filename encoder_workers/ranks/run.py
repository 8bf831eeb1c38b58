"""One rank's part of a pass: the plan that all ranks make alike, its rows through the tower, its tokens in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from encoder_workers.interface import SplitTower
from encoder_workers.media import Prepared
from encoder_workers.ranks.placement import place_items
from encoder_workers.shares import Share, even_bounds, whole


def plan_shares(tower: SplitTower, batch: Sequence[Prepared], rank: int, num_ranks: int) -> list[tuple[int, Share]]:
    """This rank's shares with the index of their item: the items it has whole, then its shares of those split."""
    shapes = [tower.shape(item) for item in batch]
    bounds = [even_bounds(shape.cuts, num_ranks) for shape in shapes]
    costs = [tower.costs.of(shape) for shape in shapes]
    ranks = place_items(costs, [bound is not None for bound in bounds], num_ranks)
    shares = [(index, whole(batch[index], shapes[index])) for index, owner in enumerate(ranks) if owner == rank]
    for index, (owner, bound) in enumerate(zip(ranks, bounds, strict=True)):
        if owner is None:
            assert bound is not None
            shares.append((index, Share(batch[index], bound, rank)))
    return shares


def run_pass(
    tower: SplitTower, batch: Sequence[Prepared], outputs: Sequence[torch.Tensor], rank: int, num_ranks: int
) -> int:
    """Compute this rank's share of a batch into `outputs`, [num_tokens, width] on the host; returns its rows.

    A rank without a share has nothing to do: items are only split where each rank gets some of them.
    """
    shares = plan_shares(tower, batch, rank, num_ranks)
    if not shares:
        return 0
    tokens = tower.forward_shares([share for _, share in shares])
    for (index, share), rows in zip(shares, tokens, strict=True):
        outputs[index].index_copy_(0, tower.places(share), rows.to("cpu"))
    return sum(share.num_rows for _, share in shares)
