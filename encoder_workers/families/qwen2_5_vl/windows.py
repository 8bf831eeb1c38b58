"""Order of a grid's patches in which every attention window is a run of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class WindowOrder:
    """Reordering of one item's merged patches (U of them: each merge_size^2 patches that become one token).

    `to_windows` [U]: which merged patch stands at each place. `from_windows` [U] undoes it. `window_lengths`: patches
    (not merged ones) in each window, none of them empty.
    """

    to_windows: torch.Tensor
    from_windows: torch.Tensor
    window_lengths: tuple[int, ...]


@lru_cache(maxsize=256)
def window_order(grid: Grid, merge_size: int, window: int) -> WindowOrder:
    """Windows of `window` x `window` merged patches from each frame's top left; those at the edges are smaller."""
    num_frames, height, width = grid[0], grid[1] // merge_size, grid[2] // merge_size
    windows_per_row = -(-width // window)
    window_rows = torch.arange(height) // window
    window_columns = torch.arange(width) // window
    in_frame = (window_rows[:, None] * windows_per_row + window_columns[None, :]).reshape(-1)
    per_frame = windows_per_row * -(-height // window)
    window_of = (torch.arange(num_frames)[:, None] * per_frame + in_frame[None, :]).reshape(-1)
    to_windows = torch.argsort(window_of, stable=True)
    lengths = torch.bincount(window_of) * merge_size**2
    return WindowOrder(to_windows, torch.argsort(to_windows), tuple(lengths.tolist()))
