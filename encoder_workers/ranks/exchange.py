"""Head-wise exchange for attention over rows that lie on several ranks (DeepSpeed-Ulysses, arXiv:2309.14509).

Before attention every rank sends, of its rows, each other rank's heads; it then holds all rows of its own heads. The
result goes the same way back. Heads need not divide evenly: the first ranks take one more.
Shapes: n rows of this rank, R rows of all, h heads of this rank, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from encoder_workers.shares import SplitSegments
from npu_kernels import Segments
from npu_kernels.interface import AttentionOp


class Group(Protocol):
    """The ranks that exchange."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_to_all(self, sent: torch.Tensor, sent_sizes: list[int], received_sizes: list[int]) -> torch.Tensor:
        """Send the first `sent_sizes[0]` values to rank 0 and so on; return what came, rank after rank."""
        ...


class ExchangeFailed(RuntimeError):
    """Another rank is gone or late: that one's failure is the reason."""


class DistributedGroup:
    """The default process group of torch.distributed; its time limit bounds every exchange."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def all_to_all(self, sent: torch.Tensor, sent_sizes: list[int], received_sizes: list[int]) -> torch.Tensor:
        received = torch.empty(sum(received_sizes), dtype=sent.dtype, device=sent.device)
        try:
            dist.all_to_all_single(received, sent, received_sizes, sent_sizes)
        except RuntimeError as error:
            raise ExchangeFailed(str(error)) from error
        return received


class ExchangedAttention:
    """An attention operator that also takes SplitSegments. All ranks of the group call it together then."""

    def __init__(self, attention: AttentionOp, group: Group) -> None:
        self._attention = attention
        self._group = group

    def __call__(
        self, q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
    ) -> torch.Tensor:
        if not isinstance(segments, SplitSegments):
            return self._attention(q_THD, k_THD, v_THD, segments, scale=scale)
        rows = segments.crossing_rows
        if rows is None or segments.local is None:
            return self._across(q_THD, k_THD, v_THD, segments, scale)
        out_THD = torch.empty_like(v_THD, memory_format=torch.contiguous_format)
        local = segments.local_rows
        q, k, v = (x.index_select(0, rows) for x in (q_THD, k_THD, v_THD))
        out_THD.index_copy_(0, rows, self._across(q, k, v, segments, scale))
        q, k, v = (x.index_select(0, local) for x in (q_THD, k_THD, v_THD))
        return out_THD.index_copy_(0, local, self._attention(q, k, v, segments.local, scale=scale))

    def _across(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: SplitSegments, scale: float
    ) -> torch.Tensor:
        """Attention [n, H, D] of the rows [n, H, D] that this rank has of crossing segments."""
        group, rows_per_rank = self._group, segments.rows_per_rank
        num_rows, num_heads, head_dim = q.shape
        assert num_rows == rows_per_rank[group.rank], (num_rows, rows_per_rank)
        heads = head_ranges(num_heads, group.size)
        first, last = heads[group.rank]
        mine = last - first

        values_per_row = [(end - start) * head_dim for start, end in heads]
        sent = torch.empty(3 * num_rows * num_heads * head_dim, dtype=q.dtype, device=q.device)
        sent_sizes = [3 * num_rows * values for values in values_per_row]
        for part, (start, end) in zip(torch.split(sent, sent_sizes), heads, strict=True):
            for place, x in zip(part.view(3, num_rows, end - start, head_dim), (q, k, v), strict=True):
                place.copy_(x[:, start:end])
        received_sizes = [3 * rows * mine * head_dim for rows in rows_per_rank]
        received = group.all_to_all(sent, sent_sizes, received_sizes)
        parts = [
            part.view(3, rows, mine, head_dim)
            for part, rows in zip(torch.split(received, received_sizes), rows_per_rank, strict=True)
        ]
        back = torch.empty(sum(rows_per_rank), mine, head_dim, dtype=q.dtype, device=q.device)
        if mine:
            q_all, k_all, v_all = (torch.cat([part[index] for part in parts]) for index in range(3))
            del parts, received, sent
            order = segments.order
            if order is None:
                back = self._attention(q_all, k_all, v_all, segments.crossing, scale=scale)
            else:
                q_all, k_all, v_all = (x.index_select(0, order) for x in (q_all, k_all, v_all))
                back.index_copy_(0, order, self._attention(q_all, k_all, v_all, segments.crossing, scale=scale))
        returned_sizes = [num_rows * values for values in values_per_row]
        returned = group.all_to_all(
            back.reshape(-1), [rows * mine * head_dim for rows in rows_per_rank], returned_sizes
        )
        pieces = torch.split(returned, returned_sizes)
        return torch.cat(
            [part.view(num_rows, end - start, head_dim) for part, (start, end) in zip(pieces, heads, strict=True)],
            dim=1,
        )


def head_ranges(num_heads: int, num_ranks: int) -> Sequence[tuple[int, int]]:
    """First and last head of each rank; the first ranks have one more where it does not come out even."""
    counts = [num_heads // num_ranks + (rank < num_heads % num_ranks) for rank in range(num_ranks)]
    return list(itertools.pairwise([0, *itertools.accumulate(counts)]))
