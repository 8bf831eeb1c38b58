"""Start-up check: each chosen operator against the reference, on the device and in the type it is going to run in.

A wrong scale, length convention or activation gives embeddings of the right shape that are silently wrong; this stops
the replica instead. Inputs have two segments of unequal length, because one alone hides a wrong length convention.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from npu_kernels import torch_ops
from npu_kernels.interface import OP_NAMES, Ops
from npu_kernels.registry import REFERENCE
from npu_kernels.segments import Segments

logger = logging.getLogger(__name__)

# Largest |difference| accepted, relative to the largest reference value (at least 1); a few units of last place.
TOLERANCE: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 8e-3, torch.bfloat16: 4e-2}
# Activations are compared value by value, relative to |value| + 0.1, and closer: two that share the name GELU differ
# by 0.02, where the value itself is small.
ACTIVATIONS = ("swiglu", "gelu", "gelu_tanh", "quick_gelu")
ACTIVATION_TOLERANCE: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
_ACTIVATION_FLOOR = 0.1
_LENGTHS = (64, 300, 64, 7)
_UNIT = 4


class KernelMismatch(RuntimeError):
    """An operator does not compute what the reference computes."""


@dataclass(frozen=True)
class AttentionShape:
    """Heads and head dimension the tower uses: limits and padding of fused kernels depend on them."""

    num_heads: int
    head_dim: int


def check_ops(ops: Ops, device: torch.device, dtype: torch.dtype, shape: AttentionShape) -> dict[str, float]:
    """Run every operator once; return its largest relative error. Raises KernelMismatch at the first that is off."""
    inputs = _Inputs(shape)
    errors: dict[str, float] = {}
    for name in OP_NAMES:
        expected = inputs.run(name, _REFERENCE_OPS, torch.device("cpu"), torch.float32, rounded_to=dtype)
        got = inputs.run(name, ops, device, dtype, rounded_to=dtype)
        if got.shape != expected.shape:
            raise KernelMismatch(f"{name} ({ops.sources[name]}): shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        difference = (got.cpu().float() - expected).abs()
        if name in ACTIVATIONS:
            tolerance, scale = ACTIVATION_TOLERANCE[dtype], expected.abs() + _ACTIVATION_FLOOR
        else:
            tolerance, scale = TOLERANCE[dtype], expected.abs().max().clamp(min=1.0)
        error = (difference / scale).max().item()
        errors[name] = error
        if not error <= tolerance:  # also refuses NaN
            raise KernelMismatch(
                f"{name} ({ops.sources[name]}, {dtype} on {device}) differs from the reference by {error:.2e}, "
                f"more than {tolerance:.0e}"
            )
    logger.info("operators agree with the reference on %s in %s: %s", device, dtype, dict(ops.sources))
    return errors


class _Inputs:
    """Fixed pseudo-random inputs, drawn once on the host."""

    def __init__(self, shape: AttentionShape) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator)

        self.segments = Segments(_LENGTHS)
        rows, width = self.segments.num_rows, 64
        self.qkv = draw(3, rows, shape.num_heads, shape.head_dim)
        angles = draw(rows, shape.head_dim // 2).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.scale = shape.head_dim**-0.5
        self.x = draw(rows // _UNIT * _UNIT, width)
        self.residual = draw(*self.x.shape)
        self.weight, self.bias = draw(width), draw(width)
        self.matrix = draw(32, width) / width**0.5
        self.fc1, self.fc1_bias = draw(width, _UNIT * width) / (_UNIT * width) ** 0.5, draw(width)
        self.fc2, self.fc2_bias = draw(32, width) / width**0.5, draw(32)

    def run(
        self, name: str, ops: Ops, device: torch.device, dtype: torch.dtype, *, rounded_to: torch.dtype
    ) -> torch.Tensor:
        """Output of one operator. Inputs are first rounded, so that both sides see the same numbers."""

        def put(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(rounded_to).to(device, dtype)

        x = put(self.x)
        match name:
            case "attention":
                q, k, v = put(self.qkv).unbind(0)
                return ops.attention(q, k, v, self.segments, scale=self.scale)
            case "rotary":
                return ops.rotary(put(self.qkv[0]), self.cos.to(device), self.sin.to(device))
            case "patch_embed":
                return ops.patch_embed(x, put(self.matrix), put(self.bias[:32]))
            case "patch_merge":
                return ops.patch_merge(
                    x, put(self.fc1), put(self.fc1_bias), put(self.fc2), put(self.fc2_bias), unit=_UNIT
                )
            case "rms_norm":
                return ops.rms_norm(x, put(self.weight), 1e-6)
            case "add_rms_norm":
                return torch.cat(ops.add_rms_norm(x, put(self.residual), put(self.weight), 1e-6))
            case "layer_norm":
                return ops.layer_norm(x, put(self.weight), put(self.bias), 1e-6)
            case "swiglu":
                return ops.swiglu(x)
            case "gelu":
                return ops.gelu(x)
            case "gelu_tanh":
                return ops.gelu_tanh(x)
            case "quick_gelu":
                return ops.quick_gelu(x)
        raise AssertionError(f"no check for {name}")


_REFERENCE_OPS = Ops(
    attention=torch_ops.attention,
    rotary=torch_ops.rotary,
    patch_embed=torch_ops.patch_embed,
    patch_merge=torch_ops.patch_merge,
    rms_norm=torch_ops.rms_norm,
    add_rms_norm=torch_ops.add_rms_norm,
    layer_norm=torch_ops.layer_norm,
    swiglu=torch_ops.swiglu,
    gelu=torch_ops.gelu,
    gelu_tanh=torch_ops.gelu_tanh,
    quick_gelu=torch_ops.quick_gelu,
    sources=dict.fromkeys(OP_NAMES, REFERENCE),
)
