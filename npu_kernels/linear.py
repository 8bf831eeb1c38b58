"""A linear layer that keeps its weight in the order in which the device multiplies it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from npu_kernels.interface import ActivationOp, Ops

_FUSED = {"gelu": "none", "gelu_tanh": "tanh"}
"""oneDNN's name of the formula, by operator."""
_ROWS = 2048
"""For which the order is chosen; any number of rows is right."""


class Linear(nn.Linear):
    """As nn.Linear until `pack` is called."""

    _packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Give up `weight` for its packed form, where there is one: on a CPU, oneDNN's, in float32 and bfloat16.

        It spares each call from rearranging the weight, and in float32 it is a faster product than PyTorch's default.
        """
        if self.weight.device.type == "cpu" and _can_multiply(self.weight.dtype):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), _ROWS)
            self.register_parameter("weight", None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[*, in_features] to [*, out_features]."""
        if self._packed is None:
            return super().forward(input)
        return _multiply(input, self._packed, self.bias)

    def activated(self, input: torch.Tensor, activation: str, ops: Ops) -> torch.Tensor:
        """The operator `activation` of the layer's output; while that is made, where both are the CPU's own."""
        if self._packed is not None and activation in _FUSED and ops.sources[activation] == "cpu":
            return _multiply(input, self._packed, self.bias, "gelu", _FUSED[activation])
        operator: ActivationOp = getattr(ops, activation)
        return operator(self(input))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weight.T + bias on a CPU, by oneDNN where it can."""
    if not _can_multiply(weight.dtype):
        return F.linear(x, weight, bias)
    return _multiply(x, weight, bias)


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Exact GELU of `linear`."""
    if not _can_multiply(weight.dtype):
        return F.gelu(F.linear(x, weight, bias))
    return _multiply(x, weight, bias, "gelu", "none")


def _multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, attribute: str = "none", algorithm: str = ""
) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    return out


def _can_multiply(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
