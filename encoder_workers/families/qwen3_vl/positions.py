"""Learned positions of a square grid, interpolated to the grid of each item."""

from __future__ import annotations

import torch

Grid = tuple[int, int, int]


def interpolation_taps(
    positions_S2: torch.Tensor, sizes_S2: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into the flattened side x side table and weights, each [S, 4], for patch positions in grids of `sizes`.

    Bilinear, corners aligned: the first row of a grid meets the table's first row, the last its last.
    """
    source = positions_S2.float() * (side - 1) / (sizes_S2 - 1).clamp(min=1)
    low = source.floor()
    high_weight = source - low
    taps_S22 = torch.stack((low.long(), (low.long() + 1).clamp(max=side - 1)), dim=1)
    weights_S22 = torch.stack((1 - high_weight, high_weight), dim=1)
    indices = taps_S22[:, :, None, 0] * side + taps_S22[:, None, :, 1]
    weights = weights_S22[:, :, None, 0] * weights_S22[:, None, :, 1]
    return indices.flatten(1), weights.flatten(1)


def grid_sizes(runs: list[tuple[Grid, int]]) -> torch.Tensor:
    """Height and width [S, 2] of the grid that each packed patch belongs to, for runs of patches of one grid."""
    sizes = torch.tensor([grid[1:] for grid, _ in runs])
    return sizes.repeat_interleave(torch.tensor([num_patches for _, num_patches in runs]), dim=0)
