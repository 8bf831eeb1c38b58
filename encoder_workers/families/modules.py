"""Building blocks that towers share: parameters under the names checkpoints give them, arithmetic by the operators."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from npu_kernels import Linear, Ops, Segments, by_row_blocks

NORM_EPS = 1e-6
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class Norm(nn.Module):
    """Scale of an RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


class LayerNorm(Norm):
    """LayerNorm with scale and shift."""

    def __init__(self, width: int, eps: float = NORM_EPS) -> None:
        super().__init__(width)
        self.eps = eps
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class PatchEmbed(nn.Module):
    """Weight of the patch convolution, [E, patch values]."""

    def __init__(self, patch_width: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(patch_width, width, bias=bias)

    def forward(self, patches: torch.Tensor, ops: Ops) -> torch.Tensor:
        return ops.patch_embed(patches, self.proj.weight, self.proj.bias)


class PackedAttention(nn.Module):
    """Self-attention inside segments of packed rows, with rotary positions; q, k and v come from one matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(
        self, x_TE: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, segments: Segments, ops: Ops
    ) -> torch.Tensor:
        num_rows, num_heads = x_TE.shape[0], self.num_heads
        qkv = self.qkv(x_TE).view(num_rows, 3 * num_heads, self.head_dim)
        q, k = torch.split(ops.rotary(qkv[:, : 2 * num_heads], cos_TD, sin_TD), num_heads, dim=1)
        attended = ops.attention(q, k, qkv[:, 2 * num_heads :], segments, scale=self.head_dim**-0.5)
        projected: torch.Tensor = self.proj(attended.reshape(num_rows, -1))
        return projected


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(width, mlp_width)
        self.fc2 = Linear(mlp_width, width)

    def forward(self, x: torch.Tensor, ops: Ops) -> torch.Tensor:
        def part(rows: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc2(self.fc1.activated(rows, self.activation, ops))
            return out

        return by_row_blocks(part, x)


class LayerNormBlock(nn.Module):
    """Pre-norm transformer block with LayerNorm: attention, then an MLP, each added to its input."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = PackedAttention(width, num_heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(
        self, x_TE: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor, segments: Segments, ops: Ops
    ) -> torch.Tensor:
        x_TE = x_TE + self.attn(self.norm1(x_TE, ops), cos_TD, sin_TD, segments, ops)
        out: torch.Tensor = x_TE + self.mlp(self.norm2(x_TE, ops), ops)
        return out


class LayerNormMerger(nn.Module):
    """Joins `unit` patches into a token: LayerNorm of each patch, or of the joined row, then a two-layer MLP."""

    def __init__(self, width: int, out_width: int, unit: int, *, norm_joined: bool) -> None:
        super().__init__()
        self.unit = unit
        self.norm_joined = norm_joined
        joined = width * unit
        self.norm = LayerNorm(joined if norm_joined else width)
        self.fc1 = nn.Linear(joined, joined)
        self.fc2 = nn.Linear(joined, out_width)

    def forward(self, x_TE: torch.Tensor, ops: Ops) -> torch.Tensor:
        if self.norm_joined:
            x_TE = self.norm(x_TE.reshape(-1, x_TE.shape[1] * self.unit), ops).reshape(x_TE.shape)
        else:
            x_TE = self.norm(x_TE, ops)
        return ops.patch_merge(x_TE, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, unit=self.unit)
