"""The Qwen2.5-VL vision tower over pluggable operators.

Shapes: S packed patches, U = S / merge_size^2 merged patches, E width, H heads, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from encoder_workers.families.costs import transformer_costs
from encoder_workers.families.modules import NORM_EPS, Norm, PackedAttention, PatchEmbed
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.families.packing import frame_lengths
from encoder_workers.families.qwen2_5_vl.windows import WindowOrder, window_order
from encoder_workers.families.qwen_pixels import PixelSettings
from encoder_workers.families.rope_2d import Rope2D, merge_order_positions
from encoder_workers.media import Prepared
from encoder_workers.shares import CostModel, ItemShape, Share, attention_segments, whole
from npu_kernels import AttentionShape, Linear, Ops, Segments, by_row_blocks


@dataclass(frozen=True)
class TowerConfig:
    """vision_config of the checkpoint."""

    depth: int
    width: int
    num_heads: int
    mlp_width: int
    out_width: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_size: int
    full_attention_layers: tuple[int, ...]
    rope_theta: float

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def merge_unit(self) -> int:
        """Patches per token."""
        return self.merge_size**2

    @property
    def window(self) -> int:
        """Side of an attention window in merged patches."""
        return self.window_size // self.merge_size // self.patch_size


class _GatedMlp(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(width, 2 * mlp_width)
        self.down_proj = Linear(mlp_width, width)

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        def part(rows: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down_proj(ops.swiglu(self.gate_up_proj(rows)))
            return out

        return by_row_blocks(part, x)


class _Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = Norm(config.width)
        self.attn = PackedAttention(config.width, config.num_heads)
        self.norm2 = Norm(config.width)
        self.mlp = _GatedMlp(config.width, config.mlp_width)


class _Merger(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        joined = config.width * config.merge_unit
        self.ln_q = Norm(config.width)
        self.fc1 = nn.Linear(joined, joined)
        self.fc2 = nn.Linear(joined, config.out_width)


class Qwen25Parameters(nn.Module):
    """All parameters of the tower, named as in the checkpoint but for PARAMETER_SOURCES."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3 * config.temporal_patch_size * config.patch_size**2, config.width, bias=False)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.merger = _Merger(config)

    def typed_blocks(self) -> list[_Block]:
        """The blocks in order."""
        return cast(list[_Block], list(self.blocks))


PARAMETER_SOURCES = {
    "merger.fc1.weight": ("merger.mlp.0.weight",),
    "merger.fc1.bias": ("merger.mlp.0.bias",),
    "merger.fc2.weight": ("merger.mlp.2.weight",),
    "merger.fc2.bias": ("merger.mlp.2.bias",),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.gate_up_proj.bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
}


@dataclass(frozen=True)
class _Packed:
    """One forward's geometry: rows already in window order, so that windows and frames are runs of neighbours."""

    patches: torch.Tensor
    positions: torch.Tensor
    windows: Segments
    frames: Segments
    tokens_per_share: list[int]


class Qwen25Tower:
    """Implements encoder_workers.interface.SplitTower."""

    layout = "main"

    def __init__(
        self,
        config: TowerConfig,
        pixels: PixelSettings,
        parameters: Qwen25Parameters,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._parameters = parameters
        self._ops = ops
        self._device = device
        self._normalize = PatchNormalizer(pixels.normalization, pixels.patch_width, device, dtype)
        self._rope = Rope2D(config.head_dim, config.rope_theta, device)

    @property
    def width(self) -> int:
        return self._config.out_width

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(self._config.num_heads, self._config.head_dim)

    @property
    def costs(self) -> CostModel:
        config = self._config
        num_full = len(config.full_attention_layers)
        return transformer_costs(
            width=config.width,
            mlp_weights=3 * config.width * config.mlp_width,
            num_full_layers=num_full,
            num_window_layers=config.depth - num_full,
            window_rows=config.window**2 * config.merge_unit,
        )

    def shape(self, item: Prepared) -> ItemShape:
        """Cut between windows alone, so that layers of windowed attention need no other rank."""
        windows = self._order(item).window_lengths
        num_pairs = sum(length**2 for length in frame_lengths(item))
        return ItemShape((0, *itertools.accumulate(windows)), num_pairs)

    def places(self, share: Share) -> torch.Tensor:
        unit = self._config.merge_unit
        return self._order(share.item).to_windows[share.first // unit : share.last // unit]

    @torch.inference_mode()
    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        tokens = self.forward_shares([whole(item, self.shape(item)) for item in batch])
        return [
            rows.index_select(0, self._order(item).from_windows.to(self._device))
            for item, rows in zip(batch, tokens, strict=True)
        ]

    @torch.inference_mode()
    def forward_shares(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        ops, parameters = self._ops, self._parameters
        packed = self._pack(shares)
        cos, sin = self._rope(packed.positions)
        residual = parameters.patch_embed(self._normalize(packed.patches), ops)
        blocks, merger = parameters.typed_blocks(), parameters.merger
        hidden = ops.rms_norm(residual, blocks[0].norm1.weight, NORM_EPS)
        # Each residual addition is fused with the norm that follows it, across the border between two blocks.
        next_norms = [*(block.norm1 for block in blocks[1:]), merger.ln_q]
        for index, (block, next_norm) in enumerate(zip(blocks, next_norms, strict=True)):
            segments = packed.frames if index in self._config.full_attention_layers else packed.windows
            attended = block.attn(hidden, cos, sin, segments, ops)
            hidden, residual = ops.add_rms_norm(attended, residual, block.norm2.weight, NORM_EPS)
            update = block.mlp(hidden, ops)
            hidden, residual = ops.add_rms_norm(update, residual, next_norm.weight, NORM_EPS)
        merged = ops.patch_merge(
            hidden,
            merger.fc1.weight,
            merger.fc1.bias,
            merger.fc2.weight,
            merger.fc2.bias,
            unit=self._config.merge_unit,
        )
        return list(torch.split(merged, packed.tokens_per_share))

    def _order(self, item: Prepared) -> WindowOrder:
        return window_order(item.grid, self._config.merge_size, self._config.window)

    def _pack(self, shares: Sequence[Share]) -> _Packed:
        """Join the shares, their rows in window order, on the host."""
        config = self._config
        unit = config.merge_unit
        orders = [self._order(share.item) for share in shares]
        patches, positions = [], []
        for share, order in zip(shares, orders, strict=True):
            merged = order.to_windows[share.first // unit : share.last // unit]
            rows = (merged[:, None] * unit + torch.arange(unit)[None, :]).reshape(-1)
            patches.append(share.item.inputs.index_select(0, rows))
            positions.append(merge_order_positions(share.item.grid, config.merge_size).index_select(0, rows))
        return _Packed(
            patches=torch.cat(patches),
            positions=torch.cat(positions),
            windows=attention_segments(shares, [order.window_lengths for order in orders], self._device),
            frames=attention_segments(shares, [frame_lengths(share.item) for share in shares], self._device),
            tokens_per_share=[share.num_rows // unit for share in shares],
        )
