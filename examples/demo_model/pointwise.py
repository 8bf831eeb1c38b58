"""The network's element-wise operations, each one pass over memory once compiled."""

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.demo_model import layout


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + layout.NORM_EPS) * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


_compiled_rms_norm = torch.compile(_rms_norm, dynamic=True)
_compiled_rotate = torch.compile(_rotate, dynamic=True)
_compiled_swiglu = torch.compile(_swiglu, dynamic=True)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Root mean square norm over the last dimension, computed in float32, returned in the type of ``x``."""
    return _compiled_rms_norm(x, weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to the last dimension; ``cos`` and ``sin`` broadcast and span half of it."""
    return _compiled_rotate(x, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return _compiled_swiglu(gate, up)
