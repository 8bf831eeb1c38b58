"""Which rows of an item a rank computes, and which of them attend to rows of other ranks.

Rows are counted in the order in which the tower computes them. An item is whole on one rank, or split: then every rank
has a share of consecutive rows. Attention segments that lie inside a share need no other rank; the few that a cut goes
through are exchanged.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoder_workers.media import Prepared
from npu_kernels import Segments


@dataclass(frozen=True)
class ItemShape:
    """What the tower will do with an item.

    Attributes:
        cuts: rows at which it may be cut, ascending, from 0 to the number of its rows.
        num_pairs: pairs of rows that attend to each other in a layer of full attention, that is sum(S_i^2).
    """

    cuts: Sequence[int]
    num_pairs: int

    @property
    def num_rows(self) -> int:
        return self.cuts[-1]


@dataclass(frozen=True)
class CostModel:
    """What a whole pass costs.

    Attributes:
        per_row: multiply-adds per row.
        per_pair: multiply-adds per pair of rows that attend to each other.
        row_values: values that a row has in memory where a pass has most of them.
    """

    per_row: float
    per_pair: float
    row_values: int = 0

    @property
    def rows_per_pair(self) -> float:
        """What a pair costs, in rows."""
        return self.per_pair / self.per_row

    def of(self, shape: ItemShape) -> float:
        """a * S + b * sum(S_i^2)."""
        return self.per_row * shape.num_rows + self.per_pair * shape.num_pairs


@dataclass(frozen=True)
class Share:
    """Rows `first` to `last` of an item: those of `rank`, out of bounds that every rank knows."""

    item: Prepared
    bounds: tuple[int, ...]
    rank: int

    @property
    def first(self) -> int:
        return self.bounds[self.rank]

    @property
    def last(self) -> int:
        return self.bounds[self.rank + 1]

    @property
    def num_rows(self) -> int:
        return self.last - self.first


def whole(item: Prepared, shape: ItemShape) -> Share:
    """All rows of the item."""
    return Share(item, (0, shape.num_rows), 0)


def even_bounds(cuts: Sequence[int], num_ranks: int) -> tuple[int, ...] | None:
    """Bounds of shares as equal as the cuts allow, none of them empty; None when there are too few cuts."""
    num_blocks = len(cuts) - 1
    if num_blocks < num_ranks:
        return None
    chosen = [0]
    for rank in range(1, num_ranks):
        target = cuts[-1] * rank / num_ranks
        index = bisect_left(cuts, target)
        if index and target - cuts[index - 1] < cuts[index] - target:
            index -= 1
        chosen.append(min(max(index, chosen[-1] + 1), num_blocks - num_ranks + rank))
    return (*(cuts[index] for index in chosen), cuts[-1])


@dataclass(frozen=True, eq=False)
class SplitSegments(Segments):
    """Segments of which some have rows on other ranks: `lengths` count those too, so no local operator takes them.

    Attributes:
        local: segments inside this rank; None when there are none.
        local_rows: their rows among this rank's, in order.
        crossing: segments with rows on several ranks, at their full lengths.
        crossing_rows: this rank's rows of them, in order; None when those are all its rows.
        rows_per_rank: rows of the crossing segments on each rank.
        order: where, among those rows rank after rank, each row of the crossing segments is; None when in order.
    """

    local: Segments | None
    local_rows: torch.Tensor
    crossing: Segments
    crossing_rows: torch.Tensor | None
    rows_per_rank: tuple[int, ...]
    order: torch.Tensor | None


def attention_segments(
    shares: Sequence[Share], lengths: Sequence[Sequence[int]], device: torch.device
) -> Segments | SplitSegments:
    """Segments of the packed rows of `shares`, at least one row.

    Args:
        lengths: attention segments of each share's item, of the whole item; none is empty.
        device: where the rows are.
    """
    local: list[int] = []
    local_runs: list[tuple[int, int]] = []
    crossing: list[tuple[int, ...]] = []
    crossing_runs: list[tuple[int, int]] = []
    base = 0
    for share, item_lengths in zip(shares, lengths, strict=True):
        for end, length in zip(itertools.accumulate(item_lengths), item_lengths, strict=True):
            start = end - length
            first, last = max(start, share.first), min(end, share.last)
            run = (base + first - share.first, base + last - share.first)
            if first == start and last == end:
                local.append(length)
                local_runs.append(run)
                continue
            rows = tuple(max(0, min(end, high) - max(start, low)) for low, high in itertools.pairwise(share.bounds))
            if max(rows) < length:
                crossing.append(rows)
                if last > first:
                    crossing_runs.append(run)
        base += share.num_rows
    if not crossing:
        return Segments(tuple(local))
    full = Segments(tuple(sum(rows) for rows in crossing))
    return SplitSegments(
        lengths=(*local, *full.lengths),
        local=Segments(tuple(local)) if local else None,
        local_rows=_rows(local_runs).to(device),
        crossing=full,
        crossing_rows=_rows(crossing_runs).to(device) if local else None,
        rows_per_rank=tuple(sum(rows) for rows in zip(*crossing, strict=True)),
        order=_segment_order(crossing).to(device) if len(crossing) > 1 else None,
    )


def _rows(runs: Sequence[tuple[int, int]]) -> torch.Tensor:
    if not runs:
        return torch.empty(0, dtype=torch.int64)
    return torch.cat([torch.arange(first, last) for first, last in runs])


def _segment_order(crossing: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Segment by segment, the places of its rows where each rank's rows stand together, those of rank 0 first."""
    rank_starts = [0, *itertools.accumulate(sum(rows) for rows in zip(*crossing, strict=True))]
    runs = []
    for rows in crossing:
        for rank, count in enumerate(rows):
            runs.append((rank_starts[rank], rank_starts[rank] + count))
            rank_starts[rank] += count
    return _rows(runs)
