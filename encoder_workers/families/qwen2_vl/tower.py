"""The Qwen2-VL vision tower over pluggable operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from encoder_workers.families.costs import transformer_costs
from encoder_workers.families.modules import Activation, LayerNormBlock, LayerNormMerger, PatchEmbed
from encoder_workers.families.normalize import PatchNormalizer
from encoder_workers.families.packing import merge_order_places, merge_order_shape, pack
from encoder_workers.families.qwen_pixels import PixelSettings
from encoder_workers.families.rope_2d import Rope2D
from encoder_workers.media import Prepared
from encoder_workers.shares import CostModel, ItemShape, Share, whole
from npu_kernels import AttentionShape, Ops


@dataclass(frozen=True)
class TowerConfig:
    """vision_config of the checkpoint."""

    depth: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Activation
    out_width: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float


class Qwen2Parameters(nn.Module):
    """All parameters of the tower, named as in the checkpoint but for PARAMETER_SOURCES."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3 * config.temporal_patch_size * config.patch_size**2, config.width, bias=False)
        self.blocks = nn.ModuleList(
            LayerNormBlock(config.width, config.num_heads, config.mlp_width, config.activation)
            for _ in range(config.depth)
        )
        self.merger = LayerNormMerger(config.width, config.out_width, config.merge_size**2, norm_joined=False)

    def typed_blocks(self) -> list[LayerNormBlock]:
        """The blocks in order."""
        return cast(list[LayerNormBlock], list(self.blocks))


PARAMETER_SOURCES = {
    "merger.norm.weight": ("merger.ln_q.weight",),
    "merger.norm.bias": ("merger.ln_q.bias",),
    "merger.fc1.weight": ("merger.mlp.0.weight",),
    "merger.fc1.bias": ("merger.mlp.0.bias",),
    "merger.fc2.weight": ("merger.mlp.2.weight",),
    "merger.fc2.bias": ("merger.mlp.2.bias",),
}


class Qwen2Tower:
    """Implements encoder_workers.interface.SplitTower."""

    layout = "main"

    def __init__(
        self,
        config: TowerConfig,
        pixels: PixelSettings,
        parameters: Qwen2Parameters,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._parameters = parameters
        self._ops = ops
        self._device = device
        self._normalize = PatchNormalizer(pixels.normalization, pixels.patch_width, device, dtype)
        self._rope = Rope2D(config.width // config.num_heads, config.rope_theta, device)

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
        return merge_order_shape(item, self._config.merge_size)

    def places(self, share: Share) -> torch.Tensor:
        return merge_order_places(share, self._config.merge_size)

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        return self.forward_shares([whole(item, self.shape(item)) for item in batch])

    @torch.inference_mode()
    def forward_shares(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        packed = pack(shares, self._config.merge_size, self._device)
        cos, sin = self._rope(packed.positions)
        hidden = self._parameters.patch_embed(self._normalize(packed.patches), self._ops)
        for block in self._parameters.typed_blocks():
            hidden = block(hidden, cos, sin, packed.frames, self._ops)
        return list(torch.split(self._parameters.merger(hidden, self._ops), packed.tokens_per_share))
