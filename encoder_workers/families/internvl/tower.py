"""The InternViT tower and the projector that makes language-model tokens of its patches.

Shapes: N tiles, P patches of a tile, E width. Each tile is one attention segment of R = 1 + P rows, the class row
first; an item is split between tiles alone, so its ranks exchange nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from encoder_workers.families.costs import transformer_costs
from encoder_workers.families.internvl.processor import TileSettings
from encoder_workers.families.modules import Activation, LayerNorm, Mlp, Norm, PatchEmbed
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.media import Prepared
from encoder_workers.shares import CostModel, ItemShape, Share, whole
from npu_kernels import AttentionShape, Linear, Ops, Segments

PROJECTOR_EPS = 1e-5
NormKind = Literal["layer_norm", "rms_norm"]


@dataclass(frozen=True)
class TowerConfig:
    """vision_config of the checkpoint, and the width of its language model."""

    depth: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Activation
    norm: NormKind
    eps: float
    qkv_bias: bool
    qk_norm: bool
    num_positions: int
    """Rows of a tile: its patches and the class row."""
    out_width: int


class BlockNorm(Norm):
    """LayerNorm or RMSNorm, as the checkpoint says."""

    def __init__(self, width: int, kind: NormKind, eps: float) -> None:
        super().__init__(width)
        self.eps = eps
        self.bias = nn.Parameter(torch.empty(width)) if kind == "layer_norm" else None

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        if self.bias is None:
            return ops.rms_norm(x, self.weight, self.eps)
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Self-attention without rotary positions; the 6B tower normalises whole queries and keys."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.width // config.num_heads
        self.qkv = Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = Linear(config.width, config.width)
        self.q_norm = BlockNorm(config.width, "rms_norm", config.eps) if config.qk_norm else None
        self.k_norm = BlockNorm(config.width, "rms_norm", config.eps) if config.qk_norm else None

    def forward(self, x_TE: torch.Tensor, segments: Segments, ops: Ops) -> torch.Tensor:
        q, k, v = self.qkv(x_TE).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, ops), self.k_norm(k, ops)
        heads = (x_TE.shape[0], self.num_heads, self.head_dim)
        attended = ops.attention(
            q.reshape(heads), k.reshape(heads), v.reshape(heads), segments, scale=self.head_dim**-0.5
        )
        projected: torch.Tensor = self.proj(attended.reshape(x_TE.shape))
        return projected


class Block(nn.Module):
    """Pre-norm block with a learned scale on each update."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = BlockNorm(config.width, config.norm, config.eps)
        self.attn = Attention(config)
        self.ls1 = nn.Parameter(torch.empty(config.width))
        self.norm2 = BlockNorm(config.width, config.norm, config.eps)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)
        self.ls2 = nn.Parameter(torch.empty(config.width))

    def forward(self, x_TE: torch.Tensor, segments: Segments, ops: Ops) -> torch.Tensor:
        x_TE = torch.addcmul(x_TE, self.ls1, self.attn(self.norm1(x_TE, ops), segments, ops))
        return torch.addcmul(x_TE, self.ls2, self.mlp(self.norm2(x_TE, ops), ops))


class InternVLParameters(nn.Module):
    """All parameters of tower and projector; `family` maps their names to those of either layout."""

    def __init__(self, config: TowerConfig, tiles: TileSettings) -> None:
        super().__init__()
        joined = config.width * tiles.merge_size**2
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.num_positions, config.width))
        self.patch_embed = PatchEmbed(tiles.patch_width, config.width, bias=True)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.projector_norm = LayerNorm(joined, PROJECTOR_EPS)
        self.fc1 = nn.Linear(joined, config.out_width)
        self.fc2 = nn.Linear(config.out_width, config.out_width)


class InternVLTower:
    """Implements encoder_workers.interface.SplitTower."""

    layout = "main"

    def __init__(
        self,
        config: TowerConfig,
        tiles: TileSettings,
        parameters: InternVLParameters,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._tiles = tiles
        self._parameters = parameters
        self._ops = ops
        self._normalize = PatchNormalizer(tiles.normalization, tiles.patch_width, device, dtype)
        order = _patch_order(tiles).to(device)
        self._class_row = parameters.class_embedding + parameters.position_embedding[0]
        self._patch_positions = parameters.position_embedding[1:].index_select(0, order)

    @property
    def width(self) -> int:
        return self._config.out_width

    @property
    def attention_shape(self) -> AttentionShape:
        return AttentionShape(self._config.num_heads, self._config.width // self._config.num_heads)

    @property
    def costs(self) -> CostModel:
        config = self._config
        return transformer_costs(
            width=config.width, mlp_weights=2 * config.width * config.mlp_width, num_full_layers=config.depth
        )

    def shape(self, item: Prepared) -> ItemShape:
        rows = self._config.num_positions
        return ItemShape(range(0, item.grid[0] * rows + 1, rows), item.grid[0] * rows**2)

    def places(self, share: Share) -> torch.Tensor:
        first, last = self._tile_range(share)
        return torch.arange(first * self._tiles.tokens_per_tile, last * self._tiles.tokens_per_tile)

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        return self.forward_shares([whole(item, self.shape(item)) for item in batch])

    @torch.inference_mode()
    def forward_shares(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        parameters, ops = self._parameters, self._ops
        ranges = [self._tile_range(share) for share in shares]
        tiles_per_share = [last - first for first, last in ranges]
        num_tiles, width = sum(tiles_per_share), self._config.width
        patches_per_tile = self._config.num_positions - 1
        inputs = torch.cat(
            [
                share.item.inputs[first * patches_per_tile : last * patches_per_tile]
                for share, (first, last) in zip(shares, ranges, strict=True)
            ]
        )
        patches = parameters.patch_embed(self._normalize(inputs), ops)
        patches_NPE = patches.view(num_tiles, -1, width) + self._patch_positions
        rows_NRE = torch.cat((self._class_row.expand(num_tiles, 1, width), patches_NPE), dim=1)
        segments = Segments((rows_NRE.shape[1],) * num_tiles)
        hidden = rows_NRE.reshape(-1, width)
        for block in cast(list[Block], list(parameters.blocks)):
            hidden = block(hidden, segments, ops)
        without_class = hidden.view(rows_NRE.shape)[:, 1:].reshape(-1, width)
        unit = self._tiles.merge_size**2
        normed = parameters.projector_norm(without_class.view(-1, unit * width), ops)
        fc1, fc2 = parameters.fc1, parameters.fc2
        # Rows are joined before the norm already, so the merge itself joins nothing more.
        tokens = ops.patch_merge(normed, fc1.weight, fc1.bias, fc2.weight, fc2.bias, unit=1)
        return list(torch.split(tokens, [tiles * self._tiles.tokens_per_tile for tiles in tiles_per_share]))

    def _tile_range(self, share: Share) -> tuple[int, int]:
        rows = self._config.num_positions
        return share.first // rows, share.last // rows


def _patch_order(tiles: TileSettings) -> torch.Tensor:
    """Row-major index of the patch at each place of a tile's rows, as `tile_patches` orders them."""
    blocks, merge = tiles.side // tiles.merge_size, tiles.merge_size
    index = torch.arange(tiles.side**2).view(blocks, merge, blocks, merge)
    block_order = (2, 0) if tiles.column_major else (0, 2)
    return index.permute(*block_order, 1, 3).reshape(-1)
