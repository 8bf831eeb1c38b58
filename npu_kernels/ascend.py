"""Ascend backend: the fused operators of torch_npu, and the only module that imports it.

No number here was taken on a device. The calls run against the real package's schemas and shape rules, and against CPU
kernels that refuse what the documentation says the device refuses (tests/npu).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch_npu

from npu_kernels import torch_ops
from npu_kernels.segments import Segments

# What npu_fused_infer_attention_score takes in layout TND: head dims, and how many cumulative lengths in one call.
_ATTENTION_HEAD_DIMS = (64, 128, 192)
_MAX_SEGMENTS = 4096
_HALF_TYPES = (torch.float16, torch.bfloat16)
# npu_fast_gelu computes another formula there, and fused inference attention does not exist.
_OLDER_CHIPS = ("Ascend310P", "Ascend910A", "Ascend910B1A", "Ascend910ProA")


def attention(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """Fused inference attention over packed rows (TND), in half precision; the reference in float32.

    Head dims the kernel lacks are filled with zeros up to the next it has. Zeros add nothing to q @ k, and `scale`
    stays that of the true head dim: the operator's own default is 1.0.
    """
    head_dim = q_THD.shape[-1]
    fused_head_dim = next((size for size in _ATTENTION_HEAD_DIMS if size >= head_dim), None)
    if q_THD.dtype not in _HALF_TYPES or fused_head_dim is None:
        return torch_ops.attention(q_THD, k_THD, v_THD, segments, scale=scale)
    missing = fused_head_dim - head_dim
    q, k, v = ((F.pad(x, (0, missing)) if missing else x).contiguous() for x in (q_THD, k_THD, v_THD))
    pieces = [
        _fused_attention(q[first:last], k[first:last], v[first:last], ends, scale)
        for first, last, ends in _calls(segments)
    ]
    attended = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return attended[..., :head_dim] if missing else attended


def _calls(segments: Segments) -> list[tuple[int, int, list[int]]]:
    """First row, last row and the ends of the segments relative to the first, for each call of bounded size."""
    calls = []
    for start in range(0, len(segments.lengths), _MAX_SEGMENTS):
        first = segments.cumulative[start]
        ends = segments.cumulative_ends[start : start + _MAX_SEGMENTS]
        calls.append((first, ends[-1], [end - first for end in ends]))
    return calls


def _fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cumulative_ends: list[int], scale: float
) -> torch.Tensor:
    # TND takes cumulative lengths on the host without a leading 0, the last equal to the number of rows, and no mask.
    attended: torch.Tensor = torch_npu.npu_fused_infer_attention_score(
        q,
        k,
        v,
        num_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        input_layout="TND",
        scale=scale,
        actual_seq_lengths=cumulative_ends,
        actual_seq_lengths_kv=cumulative_ends,
        sparse_mode=0,
    )[0]
    return attended


def rotary(x_THD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """In float32, as the reference: angles of far patches lose their meaning in half precision."""
    turned: torch.Tensor = torch_npu.npu_rotary_mul(
        x_THD.float()[None].contiguous(), cos_TD[None, :, None], sin_TD[None, :, None], rotary_mode="half"
    )
    return turned[0].to(x_THD.dtype)


def rms_norm(x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    normed: torch.Tensor = torch_npu.npu_rms_norm(x_TE, weight_E, epsilon=eps)[0]
    return normed


def add_rms_norm(
    x_TE: torch.Tensor, residual_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, _, total = torch_npu.npu_add_rms_norm(x_TE, residual_TE, weight_E, epsilon=eps)
    return normed, total


def swiglu(x: torch.Tensor) -> torch.Tensor:
    activated: torch.Tensor = torch_npu.npu_swiglu(x, dim=-1)
    return activated


def gelu(x: torch.Tensor) -> torch.Tensor:
    """torch's own gelu is documented to compute the tanh form on this device whatever it is asked for."""
    activated: torch.Tensor = torch_npu.npu_gelu(x, approximate="none")
    return activated


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    activated: torch.Tensor = torch_npu.npu_gelu(x, approximate="tanh")
    return activated


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    activated: torch.Tensor = torch_npu.npu_fast_gelu(x)
    return activated


def patch_merge(
    x_TE: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    *,
    unit: int,
) -> torch.Tensor:
    joined = x_TE.reshape(x_TE.shape[0] // unit, unit * x_TE.shape[1])
    return F.linear(gelu(F.linear(joined, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def provided_ops(device: torch.device) -> dict[str, Callable[..., object]]:
    """All but patch_embed and layer_norm, whose plain forms the device runs well; fewer on older chips."""
    ops: dict[str, Callable[..., object]] = {
        "attention": attention,
        "rotary": rotary,
        "patch_merge": patch_merge,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "swiglu": swiglu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "quick_gelu": quick_gelu,
    }
    if device.type == "npu" and torch_npu.npu.get_device_name(device).startswith(_OLDER_CHIPS):
        del ops["attention"], ops["quick_gelu"]
    return ops
