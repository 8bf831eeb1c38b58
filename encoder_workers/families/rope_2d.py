"""Two-dimensional rotary angles of the Qwen-VL towers: half of a head turns with the row, half with the column."""

from __future__ import annotations

import torch

from encoder_workers.config_reader import ConfigReader

DEFAULT_THETA = 10000.0
Grid = tuple[int, int, int]


def read_rope_theta(vision: ConfigReader) -> float:
    """Base of the frequencies; only recent configurations name it."""
    if "rope_parameters" not in vision:
        return DEFAULT_THETA
    return vision.section("rope_parameters").number("rope_theta", DEFAULT_THETA)


def merge_order_positions(grid: Grid, merge_size: int) -> torch.Tensor:
    """Row and column [S, 2] of every patch of an item, in merge order, repeated for each frame."""
    num_frames, height, width = grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    blocks = (height // merge_size, merge_size, width // merge_size, merge_size)
    ordered = [axis.reshape(blocks).transpose(1, 2).reshape(-1) for axis in (rows, columns)]
    return torch.stack(ordered, dim=-1).repeat(num_frames, 1)


class Rope2D:
    """Cosines and sines by position."""

    def __init__(self, head_dim: int, theta: float, device: torch.device) -> None:
        """Frequencies theta^(-2i/(head_dim/2)) for i < head_dim/4, each used for rows and for columns."""
        if head_dim % 4:
            raise ValueError(f"head_dim must be a multiple of 4 for a two-dimensional rotation, got {head_dim}")
        spatial_dim = head_dim // 2
        exponents = torch.arange(0, spatial_dim, 2, dtype=torch.float32) / spatial_dim
        self._frequencies = 1.0 / (theta**exponents)
        self._device = device

    def __call__(self, positions_S2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [S, head_dim] in float32 on the device, for positions on the host."""
        table = torch.outer(torch.arange(int(positions_S2.max()) + 1, dtype=torch.float32), self._frequencies)
        positions = positions_S2.to(self._device)
        table = table.to(self._device)

        def spread(values: torch.Tensor) -> torch.Tensor:
            half = values[positions].flatten(1)
            return torch.cat((half, half), dim=-1)

        return spread(table.cos()), spread(table.sin())
