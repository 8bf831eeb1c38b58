"""The Qwen2-Audio tower and projector over pluggable operators.

A clip is packed at its own length: rows of padding, which the reference masks, are not computed.
Shapes: T packed rows, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from encoder_workers.families.costs import transformer_costs
from encoder_workers.families.modules import Activation, LayerNorm, Mlp
from encoder_workers.media import Prepared
from encoder_workers.shares import CostModel, ItemShape, Share, attention_segments, whole
from npu_kernels import AttentionShape, Linear, Ops, Segments

NORM_EPS = 1e-5


@dataclass(frozen=True)
class TowerConfig:
    """audio_config of the checkpoint, and the width of its language model."""

    depth: int
    width: int
    num_heads: int
    mlp_width: int
    activation: Activation
    num_mel_bins: int
    num_positions: int
    out_width: int


class Attention(nn.Module):
    """Self-attention with its four matrices apart; keys have no bias."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.width // config.num_heads)
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width, bias=False)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x_TE: torch.Tensor, segments: Segments, ops: Ops) -> torch.Tensor:
        q, k, v = (p(x_TE).view(-1, *self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        attended = ops.attention(q, k, v, segments, scale=self.heads[1] ** -0.5)
        projected: torch.Tensor = self.out_proj(attended.reshape(x_TE.shape))
        return projected


class Block(nn.Module):
    """Pre-norm block, as in Whisper's encoder."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = LayerNorm(config.width, NORM_EPS)
        self.self_attn = Attention(config)
        self.final_layer_norm = LayerNorm(config.width, NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width, config.activation)

    def forward(self, x_TE: torch.Tensor, segments: Segments, ops: Ops) -> torch.Tensor:
        x_TE = x_TE + self.self_attn(self.self_attn_layer_norm(x_TE, ops), segments, ops)
        out: torch.Tensor = x_TE + self.mlp(self.final_layer_norm(x_TE, ops), ops)
        if out.dtype == torch.float16:  # the reference keeps activations that overflow float16 finite
            bound = torch.finfo(torch.float16).max - 1000
            out = out.clamp(min=-bound, max=bound)
        return out


class Qwen2AudioParameters(nn.Module):
    """All parameters of tower and projector."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.num_positions, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.layer_norm = LayerNorm(config.width, NORM_EPS)
        self.projector = Linear(config.width, config.out_width)


class Qwen2AudioTower:
    """Implements encoder_workers.interface.SplitTower."""

    layout = "main"

    def __init__(
        self,
        config: TowerConfig,
        parameters: Qwen2AudioParameters,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._parameters = parameters
        self._ops = ops
        self._device = device
        self._dtype = dtype

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
        """Cut between the pairs of rows that are pooled; an odd last row goes with the last pair."""
        num_rows = item.grid[2]
        squares = sum(rows**2 for rows in self._clip_rows(num_rows))
        return ItemShape((*range(0, num_rows - 1, 2), num_rows), squares)

    def places(self, share: Share) -> torch.Tensor:
        return torch.arange(share.first // 2, share.last // 2)

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        return self.forward_shares([whole(item, self.shape(item)) for item in batch])

    @torch.inference_mode()
    def forward_shares(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        parameters, ops = self._parameters, self._ops
        rows_per_share = [share.num_rows for share in shares]
        # The convolutions reach over the cuts and are less than a hundredth of the work: every rank does them whole.
        hidden = torch.cat([self._embed(share.item)[share.first : share.last] for share in shares])
        clips = [tuple(self._clip_rows(share.item.grid[2])) for share in shares]
        segments = attention_segments(shares, clips, self._device)
        for block in cast(list[Block], list(parameters.layers)):
            hidden = block(hidden, segments, ops)
        pooled = torch.cat([_pool_pairs(rows) for rows in torch.split(hidden, rows_per_share)])
        tokens = parameters.projector(parameters.layer_norm(pooled, ops))
        return list(torch.split(tokens, [rows // 2 for rows in rows_per_share]))

    def _clip_rows(self, num_rows: int) -> list[int]:
        """Rows of each clip of an item: all but the last are full, an even number, so that no pair crosses a border."""
        full, left = divmod(num_rows, self._config.num_positions)
        return [self._config.num_positions] * full + [left] * bool(left)

    def _embed(self, item: Prepared) -> torch.Tensor:
        """Rows [L, E] of one item before the first block."""
        clip_rows = self._clip_rows(item.grid[2])
        frames_per_clip = [min(2 * rows + 1, 2 * self._config.num_positions) for rows in clip_rows]
        clips = torch.split(item.inputs.to(self._device, self._dtype), frames_per_clip, dim=1)
        return torch.cat([self._embed_clip(clip, rows) for clip, rows in zip(clips, clip_rows, strict=True)])

    def _embed_clip(self, features_MF: torch.Tensor, num_rows: int) -> torch.Tensor:
        parameters, ops = self._parameters, self._ops
        features = ops.gelu(parameters.conv1(features_MF[None]))
        features = ops.gelu(parameters.conv2(features))
        return features[0, :, :num_rows].T + parameters.embed_positions.weight[:num_rows]


def _pool_pairs(rows_LE: torch.Tensor) -> torch.Tensor:
    pairs = len(rows_LE) // 2
    return rows_LE[: 2 * pairs].view(pairs, 2, -1).mean(1)
