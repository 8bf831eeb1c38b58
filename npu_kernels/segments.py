"""Segment lengths of a packed batch, kept on the host: which rows attend to each other.

Shape legend of this package: T packed rows (patches or frames), H heads, D head dimension, E width, I inner width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch


@dataclass(frozen=True)
class LengthGroup:
    """All segments of one length: `rows[i]` lists the packed rows of the i-th of them; None when they are all rows."""

    length: int
    num_segments: int
    rows: torch.Tensor | None


@dataclass(frozen=True)
class Segments:
    """Lengths of consecutive segments of packed rows; every row belongs to exactly one segment.

    Computed once per forward on the host and passed to every layer. Operators differ in the convention they want, and
    a wrong one gives wrong numbers only when there are two segments or more, so each convention has a named property.
    """

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) <= 0:
            raise ValueError(f"segment lengths must be positive and at least one, got {self.lengths[:8]}")

    @staticmethod
    def of(lengths: Iterable[int]) -> Segments:
        """Segments without the empty ones, which operators with cumulative lengths refuse or miscount."""
        return Segments(tuple(length for length in lengths if length))

    @cached_property
    def num_rows(self) -> int:
        return sum(self.lengths)

    @cached_property
    def max_length(self) -> int:
        return max(self.lengths)

    @cached_property
    def cumulative_ends(self) -> tuple[int, ...]:
        """End row of each segment; no leading 0, the last is `num_rows`."""
        return tuple(itertools.accumulate(self.lengths))

    @cached_property
    def cumulative(self) -> tuple[int, ...]:
        """As `cumulative_ends` with a leading 0."""
        return (0, *self.cumulative_ends)

    def cumulative_on(self, device: torch.device) -> torch.Tensor:
        """`cumulative` as int32 on the device, copied there once for all layers."""
        if device not in self._cumulative_tensors:
            self._cumulative_tensors[device] = torch.tensor(self.cumulative, dtype=torch.int32).to(device)
        return self._cumulative_tensors[device]

    def groups_on(self, device: torch.device) -> tuple[LengthGroup, ...]:
        """`groups` with their rows on the device, copied there once for all layers."""
        if device not in self._device_groups:
            self._device_groups[device] = tuple(
                replace(group, rows=None if group.rows is None else group.rows.to(device)) for group in self.groups
            )
        return self._device_groups[device]

    @cached_property
    def _cumulative_tensors(self) -> dict[torch.device, torch.Tensor]:
        return {}

    @cached_property
    def _device_groups(self) -> dict[torch.device, tuple[LengthGroup, ...]]:
        return {}

    @cached_property
    def groups(self) -> tuple[LengthGroup, ...]:
        """Segments gathered by length, so that equal ones can go through one batched call."""
        distinct = sorted(set(self.lengths))
        if len(distinct) == 1:
            return (LengthGroup(distinct[0], len(self.lengths), None),)
        lengths = torch.tensor(self.lengths)
        starts = lengths.cumsum(0) - lengths
        groups = []
        for length in distinct:
            group_starts = starts[lengths == length]
            rows = (group_starts[:, None] + torch.arange(length)[None, :]).reshape(-1)
            groups.append(LengthGroup(length, len(group_starts), rows))
        return tuple(groups)
