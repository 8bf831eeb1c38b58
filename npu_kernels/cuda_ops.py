"""CUDA backend: PyTorch's variable-length flash attention; every other operator's plain form is used there.

Not run on a device by this project's tests, which have none; the start-up check compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from npu_kernels import torch_ops
from npu_kernels.segments import Segments

_HALF_TYPES = (torch.float16, torch.bfloat16)
_HEAD_DIM_MULTIPLE = 8
_MAX_HEAD_DIM = 256


def attention(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """One flash-attention call for all segments in half precision; the reference in float32 and for huge heads."""
    head_dim = q_THD.shape[-1]
    if q_THD.dtype not in _HALF_TYPES or head_dim > _MAX_HEAD_DIM:
        return torch_ops.attention(q_THD, k_THD, v_THD, segments, scale=scale)
    missing = -head_dim % _HEAD_DIM_MULTIPLE
    q, k, v = ((F.pad(x, (0, missing)) if missing else x).contiguous() for x in (q_THD, k_THD, v_THD))
    cumulative = segments.cumulative_on(q.device)
    longest = segments.max_length
    attended = varlen_attn(q, k, v, cumulative, cumulative, longest, longest, scale=scale)
    assert isinstance(attended, torch.Tensor)
    return attended[..., :head_dim]


def provided_ops(device: torch.device) -> dict[str, Callable[..., object]]:
    """Attention, on chips that have flash attention (compute capability 8.0 and above)."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return {}
    return {"attention": attention}
