"""The demo model's sizes and the index arithmetic of its pictures: grids, patches, windows.

Shape letters used in this folder: B rows or pictures, N patches of a picture, T tokens of a row, D width.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

PATCH = 14
MERGE = 2
CELL = PATCH * MERGE
MIN_PIXELS = 25 * CELL * CELL
MAX_PIXELS = 36 * CELL * CELL
WINDOW_CELLS = 4
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

TOWER_WIDTH = 128
TOWER_HEADS = 4
TOWER_MLP = 256
TOWER_DEPTH = 6
FULL_ATTENTION_BLOCKS = (1, 3, 4, 5)
TOWER_ROPE_BASE = 10000.0

TEXT_WIDTH = 256
TEXT_HEADS = 4
TEXT_KV_HEADS = 2
TEXT_MLP = 384
TEXT_DEPTH = 4
# The published models use a base of a million and sections (16, 24, 24), for pictures hundreds of cells wide. A grid
# of 3 to 12 cells would turn the width's slow frequencies by less than a hundredth of a radian.
TEXT_ROPE_BASE = 20.0
MROPE_SECTION = (4, 14, 14)
MAX_POSITIONS = 2048
NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Grid:
    """Cells (merged 2x2 patches) down and across; one visual token each."""

    rows: int
    columns: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


def grid_of(width: int, height: int) -> Grid:
    """Return the grid that Qwen2-VL's preprocessing resizes a picture of this size to."""
    rows, columns = round(height / CELL), round(width / CELL)
    if rows * columns * CELL * CELL > MAX_PIXELS:
        shrink = math.sqrt(height * width / MAX_PIXELS)
        rows, columns = max(1, math.floor(height / shrink / CELL)), max(1, math.floor(width / shrink / CELL))
    elif rows * columns * CELL * CELL < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        rows, columns = math.ceil(height * grow / CELL), math.ceil(width * grow / CELL)
    return Grid(rows, columns)


@functools.lru_cache(maxsize=256)
def windows(grid: Grid) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Return the cells in window order (raster indices) and the number of patches in each window."""
    cells = np.arange(grid.num_tokens).reshape(grid.rows, grid.columns)
    parts = [
        cells[row : row + WINDOW_CELLS, column : column + WINDOW_CELLS].reshape(-1)
        for row in range(0, grid.rows, WINDOW_CELLS)
        for column in range(0, grid.columns, WINDOW_CELLS)
    ]
    return np.concatenate(parts), tuple(part.size * MERGE * MERGE for part in parts)


@functools.lru_cache(maxsize=256)
def patch_order(grid: Grid) -> npt.NDArray[np.int64]:
    """Return (N, 2): row and column of every patch, in the order in which the tower works (window, cell, patch)."""
    cells, _ = windows(grid)
    rows, columns = cells // grid.columns, cells % grid.columns
    inner = np.array([(i, j) for i in range(MERGE) for j in range(MERGE)])
    places = np.stack([rows, columns], axis=1)[:, None, :] * MERGE + inner[None]
    return np.ascontiguousarray(places.reshape(-1, 2))


def patches_of(image: Image.Image, grid: Grid) -> npt.NDArray[np.uint8]:
    """Resize an RGB picture to its grid and return uint8 patches (N, 3, 14, 14) in the tower's order."""
    resized = image.resize((grid.columns * CELL, grid.rows * CELL), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized).reshape(grid.rows * MERGE, PATCH, grid.columns * MERGE, PATCH, 3)
    places = patch_order(grid)
    return np.ascontiguousarray(pixels[places[:, 0], :, places[:, 1]].transpose(0, 3, 1, 2))
