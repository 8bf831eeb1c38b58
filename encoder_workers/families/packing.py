"""Joins the shares of one forward pass into packed rows, without reordering them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from encoder_workers.families.rope_2d import merge_order_positions
from encoder_workers.media import Prepared
from encoder_workers.shares import ItemShape, Share, attention_segments
from npu_kernels import Segments


@dataclass(frozen=True)
class PackedItems:
    """Rows of all shares one after another, on the host. Attention stays inside each frame."""

    patches: torch.Tensor
    positions: torch.Tensor
    """Row and column [S, 2] of each patch in its frame."""
    frames: Segments
    tokens_per_share: list[int]


def frame_lengths(item: Prepared) -> tuple[int, ...]:
    """Patches of each frame of an item."""
    frames, height, width = item.grid
    return (height * width,) * frames


def merge_order_shape(item: Prepared, merge_size: int) -> ItemShape:
    """An item whose rows are in merge order may be cut between any two tokens."""
    return ItemShape(
        cuts=range(0, len(item.inputs) + 1, merge_size**2),
        num_pairs=sum(length**2 for length in frame_lengths(item)),
    )


def merge_order_places(share: Share, merge_size: int) -> torch.Tensor:
    """Tokens of a share of such an item."""
    return torch.arange(share.first // merge_size**2, share.last // merge_size**2)


def pack(shares: Sequence[Share], merge_size: int, device: torch.device) -> PackedItems:
    """`shares` holds at least one row; rows of each item are in merge order."""
    return PackedItems(
        patches=torch.cat([share.item.inputs[share.first : share.last] for share in shares]),
        positions=torch.cat(
            [merge_order_positions(share.item.grid, merge_size)[share.first : share.last] for share in shares]
        ),
        frames=attention_segments(shares, [frame_lengths(share.item) for share in shares], device),
        tokens_per_share=[share.num_rows // merge_size**2 for share in shares],
    )
