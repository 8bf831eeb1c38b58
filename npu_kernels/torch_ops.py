"""The reference backend: every operator in plain PyTorch, on any device, and the right answer for all others."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from npu_kernels.segments import Segments


def attention_by_length(
    q_THD: torch.Tensor,
    k_THD: torch.Tensor,
    v_THD: torch.Tensor,
    segments: Segments,
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Attention inside each segment, by `attend` over q, k and v of [N, H, L, D] for all segments of one length.

    Segments of equal length share one batched call: a window tower has hundreds of small equal ones.
    """
    assert segments.num_rows == q_THD.shape[0], (segments.num_rows, q_THD.shape)
    num_heads, head_dim = q_THD.shape[1:]
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    for group in segments.groups_on(q_THD.device):
        batch = (group.num_segments, group.length, num_heads, head_dim)
        rows = group.rows
        q, k, v = (
            (x if rows is None else x.index_select(0, rows)).reshape(batch).transpose(1, 2)
            for x in (q_THD, k_THD, v_THD)
        )
        attended = attend(q, k, v).transpose(1, 2).reshape(-1, num_heads, head_dim)
        if rows is None:
            return attended
        out_THD.index_copy_(0, rows, attended)
    return out_THD


def attention(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    return attention_by_length(q_THD, k_THD, v_THD, segments, attend)


def rotary(x_THD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    half = x_THD.shape[-1] // 2
    cos, sin = cos_TD[:, None, :half], sin_TD[:, None, :half]
    first, second = x_THD[..., :half].float(), x_THD[..., half:].float()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_THD.dtype)


def patch_embed(x_TE: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution whose stride is its kernel, over patches that arrive flattened, is one matrix product."""
    return F.linear(x_TE, weight, bias)


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
    return F.linear(F.gelu(F.linear(joined, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def rms_norm(x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    x = x_TE.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(x_TE.dtype) * weight_E


def add_rms_norm(
    x_TE: torch.Tensor, residual_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x_TE + residual_TE
    return rms_norm(total, weight_E, eps), total


def layer_norm(x_TE: torch.Tensor, weight_E: torch.Tensor, bias_E: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x_TE, (x_TE.shape[-1],), weight_E, bias_E, eps)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def provided_ops(device: torch.device) -> dict[str, Callable[..., object]]:
    """Every operator; the reference runs on any device."""
    del device
    return {
        "attention": attention,
        "rotary": rotary,
        "patch_embed": patch_embed,
        "patch_merge": patch_merge,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "layer_norm": layer_norm,
        "swiglu": swiglu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "quick_gelu": quick_gelu,
    }
