"""The operators an encoder is made of: their signatures, and the record in which a chosen set of them travels.

Shapes: T packed rows, H heads, D head dimension, E width, I inner width. Every operator returns a new tensor of the
input's dtype and leaves its inputs alone; none takes a mask, none looks at a global context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch

from npu_kernels.segments import Segments


class AttentionOp(Protocol):
    def __call__(
        self, q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
    ) -> torch.Tensor:
        """Full attention inside each segment, none across; returns [T, H, D]. `scale` multiplies q @ k."""
        ...


class RotaryOp(Protocol):
    def __call__(self, x_THD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
        """Rotate the pairs (i, i + D/2) of each head. cos and sin are float32, their two halves along D equal."""
        ...


class LinearOp(Protocol):
    def __call__(self, x_TE: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ weight.T + bias, weight [out, E]."""
        ...


class PatchMergeOp(Protocol):
    def __call__(
        self,
        x_TE: torch.Tensor,
        fc1_weight: torch.Tensor,
        fc1_bias: torch.Tensor,
        fc2_weight: torch.Tensor,
        fc2_bias: torch.Tensor,
        *,
        unit: int,
    ) -> torch.Tensor:
        """Join each `unit` rows into one of width unit * E, then linear, exact GELU, linear: [T / unit, out]."""
        ...


class RmsNormOp(Protocol):
    def __call__(self, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight, the mean in float32."""
        ...


class AddRmsNormOp(Protocol):
    def __call__(
        self, x_TE: torch.Tensor, residual_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rms_norm(x + residual), x + residual)."""
        ...


class LayerNormOp(Protocol):
    def __call__(
        self, x_TE: torch.Tensor, weight_E: torch.Tensor, bias_E: torch.Tensor, eps: float
    ) -> torch.Tensor: ...


class ActivationOp(Protocol):
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Ops:
    """One implementation per operator. `sources` names the backend each came from."""

    attention: AttentionOp
    rotary: RotaryOp
    patch_embed: LinearOp
    patch_merge: PatchMergeOp
    rms_norm: RmsNormOp
    add_rms_norm: AddRmsNormOp
    layer_norm: LayerNormOp
    swiglu: ActivationOp
    """[T, 2I] -> [T, I]: silu(first half) * second half."""
    gelu: ActivationOp
    """x * Phi(x), by the error function."""
    gelu_tanh: ActivationOp
    """The tanh approximation of GELU."""
    quick_gelu: ActivationOp
    """x * sigmoid(1.702 x)."""
    sources: Mapping[str, str]


OP_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Ops) if field.name != "sources")
