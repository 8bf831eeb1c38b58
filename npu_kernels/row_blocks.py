"""Layers that widen rows for a moment, a block of rows at a time where what lies between should stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch

_CPU_ROWS = 512
"""Few enough that the wide rows of a block stay in the outer cache and their memory is used again; enough that weights,
which each block reads, cost next to nothing."""


def by_row_blocks(part: Callable[[torch.Tensor], torch.Tensor], x_TE: torch.Tensor) -> torch.Tensor:
    """part(x), where `part` treats every row by itself and keeps the width: in blocks on a CPU, else at once."""
    if x_TE.device.type != "cpu" or len(x_TE) <= _CPU_ROWS:
        return part(x_TE)
    out = torch.empty(x_TE.shape, dtype=x_TE.dtype)
    for first in range(0, len(x_TE), _CPU_ROWS):
        rows = slice(first, first + _CPU_ROWS)
        out[rows] = part(x_TE[rows])
    return out
