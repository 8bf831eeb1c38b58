"""The Qwen3-VL vision tower over pluggable operators.

DeepStack: besides the last layer's, the outputs of a few inner layers are merged into tokens too; the language model
adds them to its first layers. They travel beside the main embedding: [main, level 0, level 1, ...] along the width.
"""

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
from encoder_workers.families.qwen3_vl.positions import grid_sizes, interpolation_taps
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
    """Columns of one level: the language model's width."""
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    position_side: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float


class Qwen3Parameters(nn.Module):
    """All parameters of the tower, named as in the checkpoint but for PARAMETER_SOURCES."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        unit = config.merge_size**2
        self.patch_embed = PatchEmbed(3 * config.temporal_patch_size * config.patch_size**2, config.width, bias=True)
        self.pos_embed = nn.Embedding(config.position_side**2, config.width)
        self.blocks = nn.ModuleList(
            LayerNormBlock(config.width, config.num_heads, config.mlp_width, config.activation)
            for _ in range(config.depth)
        )
        self.merger = LayerNormMerger(config.width, config.out_width, unit, norm_joined=False)
        self.deepstack_merger_list = nn.ModuleList(
            LayerNormMerger(config.width, config.out_width, unit, norm_joined=True) for _ in config.deepstack_layers
        )

    def typed_blocks(self) -> list[LayerNormBlock]:
        """The blocks in order."""
        return cast(list[LayerNormBlock], list(self.blocks))


PARAMETER_SOURCES = {
    f".{layer}.{kind}": (f".linear_{layer}.{kind}",) for layer in ("fc1", "fc2") for kind in ("weight", "bias")
}


class Qwen3Tower:
    """Implements encoder_workers.interface.SplitTower."""

    def __init__(
        self,
        config: TowerConfig,
        pixels: PixelSettings,
        parameters: Qwen3Parameters,
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
        self._merger_of_layer = dict(zip(config.deepstack_layers, parameters.deepstack_merger_list, strict=True))

    @property
    def width(self) -> int:
        return self._config.out_width * (1 + len(self._config.deepstack_layers))

    @property
    def layout(self) -> str:
        levels = len(self._config.deepstack_layers)
        return f"main+deepstack{levels}" if levels else "main"

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
        hidden = hidden + self._learned_positions(packed.positions, shares).to(hidden.dtype)
        levels: list[torch.Tensor] = []
        for index, block in enumerate(self._parameters.typed_blocks()):
            hidden = block(hidden, cos, sin, packed.frames, self._ops)
            if index in self._merger_of_layer:
                levels.append(self._merger_of_layer[index](hidden, self._ops))
        tokens = torch.cat([self._parameters.merger(hidden, self._ops), *levels], dim=1)
        return list(torch.split(tokens, packed.tokens_per_share))

    def _learned_positions(self, positions_S2: torch.Tensor, shares: Sequence[Share]) -> torch.Tensor:
        """Interpolated position embeddings [S, E], in float32."""
        sizes = grid_sizes([(share.item.grid, share.num_rows) for share in shares])
        indices, weights = interpolation_taps(positions_S2, sizes, self._config.position_side)
        indices, weights = indices.to(self._device), weights.to(self._device)
        # Tap after tap: all four at once would be the largest tensor of the pass.
        total = torch.zeros(len(indices), self._config.width, device=self._device)
        for tap in range(indices.shape[1]):
            total.addcmul_(self._parameters.pos_embed(indices[:, tap]).float(), weights[:, tap, None])
        return total
