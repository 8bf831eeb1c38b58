"""Joins the items of one forward pass into packed rows, without reordering them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoder_workers.families.rope_2d import merge_order_positions
from encoder_workers.media import Prepared
from npu_kernels import Segments


@dataclass(frozen=True)
class PackedItems:
    """Rows of all items one after another, on the host. Attention stays inside each frame."""

    patches: torch.Tensor
    positions: torch.Tensor
    """Row and column [S, 2] of each patch in its frame."""
    frames: Segments
    tokens_per_item: list[int]


def frame_lengths(batch: Sequence[Prepared]) -> Segments:
    """One segment per frame of every item."""
    return Segments.of(height * width for frames, height, width in (i.grid for i in batch) for _ in range(frames))


def pack(batch: Sequence[Prepared], merge_size: int) -> PackedItems:
    """`batch` holds at least one item; rows of each are in merge order."""
    return PackedItems(
        patches=torch.cat([item.inputs for item in batch]),
        positions=torch.cat([merge_order_positions(item.grid, merge_size) for item in batch]),
        frames=frame_lengths(batch),
        tokens_per_item=[len(item.inputs) // merge_size**2 for item in batch],
    )
