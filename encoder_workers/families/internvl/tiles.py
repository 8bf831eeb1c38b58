"""How an image is cut into square tiles, by InternVL's two processors, which differ in their resize filter only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from encoder_workers.resize import resize_bicubic

Resize = Callable[[torch.Tensor, int, int], torch.Tensor]
"""Pixels [H, W, 3] to [3, height, width], uint8."""


@dataclass(frozen=True)
class TileGrid:
    """Columns and rows of tiles; a thumbnail of the whole image is one more tile where there are several."""

    columns: int
    rows: int
    thumbnail: bool

    @property
    def num_tiles(self) -> int:
        return self.columns * self.rows + int(self.thumbnail)


@lru_cache(maxsize=16)
def _arrangements(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with min_tiles to max_tiles tiles, fewest first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(
    height: int, width: int, *, tile_size: int, min_tiles: int, max_tiles: int, thumbnail: bool
) -> TileGrid:
    """The arrangement whose aspect ratio is nearest to the image's; of several equally near ones the largest whose
    tiles have less than twice the image's area. From InternVL's dynamic_preprocess."""
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _arrangements(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (columns, rows), distance
    return TileGrid(*best, thumbnail=thumbnail and best != (1, 1))


def cut_tiles(pixels_HWC: torch.Tensor, grid: TileGrid, tile_size: int, resize: Resize) -> torch.Tensor:
    """Tiles [N, 3, tile_size, tile_size] in uint8, row by row, the thumbnail last."""
    whole = resize(pixels_HWC, grid.rows * tile_size, grid.columns * tile_size)
    split = whole.reshape(3, grid.rows, tile_size, grid.columns, tile_size).permute(1, 3, 0, 2, 4)
    tiles = split.reshape(-1, 3, tile_size, tile_size)
    if grid.thumbnail:
        tiles = torch.cat((tiles, resize(pixels_HWC, tile_size, tile_size)[None]))
    return tiles


def resize_like_pillow(pixels_HWC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pillow's bicubic filter: what the processor in OpenGVLab's layout, and vLLM's of it, use."""
    resized = Image.fromarray(pixels_HWC.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def resize_like_tensors(pixels_HWC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The tensor filter: what Hugging Face's processor of the -hf layout uses."""
    return resize_bicubic(pixels_HWC.permute(2, 0, 1)[None], height, width)[0]
