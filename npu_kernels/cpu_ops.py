"""CPU backend: attention in bfloat16 as matrix products, and the reference's other operators in blocks of rows.

PyTorch's fused attention reaches 35 to 40 % of the matrix rate of a processor that multiplies bfloat16 in hardware;
products of tiles that stay in the cache, with only an exponential between them, reach 55 to 70 %. What is computed
value by value takes its time from fresh memory for what lies between, which blocks keep in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from npu_kernels import torch_ops
from npu_kernels.linear import linear, linear_gelu
from npu_kernels.segments import Segments

_FEWEST_ROWS = 256
"""Below, tiles are too small to pay."""
_WINDOW_ROWS = 128
"""Up to here, as the windows of a tower are, many segments at once pay."""
_WINDOW_SCORES = 1 << 18
"""Of the segments that are computed at once."""
_TILE = 1024
"""Rows and columns of a tile of scores, half more at most: it is written and read twice in the outer cache."""
_MULTIPLE = 16
_LARGEST_SCORE = 64.0
"""In powers of two: exponentials of larger ones, and their sums, could leave what a float32 holds."""

_BLOCK_VALUES = 1 << 19
"""Of a block of rows, for each thread: float32 copies stay in the cache, and threads meet as seldom as that allows."""


def attention(
    q_THD: torch.Tensor, k_THD: torch.Tensor, v_THD: torch.Tensor, segments: Segments, *, scale: float
) -> torch.Tensor:
    """In bfloat16 matrix products, in tiles of long segments or of many short ones; PyTorch's fused attention else."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.dtype == torch.bfloat16 and q.shape[2] >= _FEWEST_ROWS:
            attended = _attend_in_tiles(q, k, v, scale)
            if attended is not None:
                return attended
        if q.dtype == torch.bfloat16 and q.shape[2] <= _WINDOW_ROWS:
            return _attend_in_windows(q, k, v, scale)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    return torch_ops.attention_by_length(q_THD, k_THD, v_THD, segments, attend)


def _attend_in_windows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale * q k^T) v for [N, H, L, D], some of the N at a time; scores are rounded to bfloat16."""
    num_heads, length, head_dim = q.shape[1:]
    out = torch.empty_like(q)
    num_at_once = max(1, _WINDOW_SCORES // (num_heads * length**2))
    for first in range(0, len(q), num_at_once):
        here = slice(first, first + num_at_once)
        q_BLD, k_BLD, v_BLD = (x[here].reshape(-1, length, head_dim) for x in (q, k, v))
        scores = q.new_empty(len(q_BLD), length, length)
        torch.baddbmm(scores, q_BLD, k_BLD.transpose(1, 2), beta=0, alpha=scale, out=scores)
        out[here] = torch.bmm(torch.softmax(scores, -1), v_BLD).view(-1, *q.shape[1:])
    return out


def _attend_in_tiles(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor | None:
    """softmax(scale * q k^T) v for [N, H, L, D]; None where a score could be too large for it.

    Scores are rounded to bfloat16, as a plain product is. They are small, because the mean of the keys is taken off
    every key, which adds one number to all scores of a row and so leaves their softmax as it is. Bounded scores need
    no maximum taken off before the exponential, so tiles of one row are simply added up.
    """
    num_heads, length, head_dim = q.shape[1:]
    factor = scale * math.log2(math.e)
    centred = torch.add(k.mean(2, keepdim=True).mul_(-factor), k, alpha=factor)
    if not _longest_row(q) * _longest_row(centred) <= _LARGEST_SCORE:
        return None
    q, k, v = q.flatten(0, 1), centred.contiguous().flatten(0, 1), _with_ones(v).flatten(0, 1)
    size = _even(length)
    scores, part = q.new_empty(size * size), q.new_empty(size, v.shape[2])
    out = torch.empty(q.shape, dtype=q.dtype)

    def weigh(q_RD: torch.Tensor, k_CD: torch.Tensor, v_CW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of the values by their weights, and of the weights; both are good until the next call."""
        tile = scores[: len(q_RD) * len(v_CW)].view(len(q_RD), len(v_CW))
        torch.exp2(torch.mm(q_RD, k_CD.t(), out=tile), out=tile)
        values = torch.mm(tile, v_CW, out=part[: len(q_RD)])
        if v_CW.shape[1] > head_dim:
            return values[:, :head_dim], values[:, head_dim, None]
        return values, tile.sum(1, keepdim=True)

    for q_LD, k_LD, v_LW, out_LD in zip(q, k, v, out, strict=True):
        columns = list(zip(k_LD.split(size), v_LW.split(size), strict=True))
        for q_RD, out_RD in zip(q_LD.split(size), out_LD.split(size), strict=True):
            values, sums = weigh(q_RD, *columns[0])
            for k_CD, v_CW in columns[1:]:
                values, sums = values.float(), sums.float()
                more_values, more_sums = weigh(q_RD, k_CD, v_CW)
                values += more_values
                sums += more_sums
            torch.div(values, sums, out=out_RD)
    return out.view(-1, num_heads, length, head_dim)


def _with_ones(v: torch.Tensor) -> torch.Tensor:
    """Values beside ones where a product of their width has room: it then gives the sums of its rows as well."""
    head_dim = v.shape[-1]
    width = -(-head_dim // _MULTIPLE) * _MULTIPLE
    if width == head_dim:
        return v.contiguous()
    return torch.cat((v, v.new_ones(1).expand(*v.shape[:-1], width - head_dim)), dim=-1)


def _longest_row(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dim=-1).amax())


def _even(length: int) -> int:
    """Size of parts of about a tile's, as even as a multiple of 16 allows."""
    num_parts = max(1, round(length / _TILE))
    return min(length, -(-length // (num_parts * _MULTIPLE)) * _MULTIPLE)


def rotary(x_THD: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Each half times the cosines, and the other half times the sines, those of the first half negative."""
    half = x_THD.shape[-1] // 2
    out = torch.empty(x_THD.shape, dtype=x_THD.dtype)
    for rows in _blocks(x_THD):
        x, cos, sin = x_THD[rows].float(), cos_TD[rows, None, :half], sin_TD[rows, None, :half]
        swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
        out[rows] = (x * torch.cat((cos, cos), dim=-1)).addcmul_(swapped, torch.cat((-sin, sin), dim=-1))
    return out


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
    return linear(linear_gelu(joined, fc1_weight, fc1_bias), fc2_weight, fc2_bias)


def rms_norm(x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty(x_TE.shape, dtype=x_TE.dtype)
    for rows in _blocks(x_TE):
        _rms_norm_into(out[rows], x_TE[rows], weight_E, eps)
    return out


def add_rms_norm(
    x_TE: torch.Tensor, residual_TE: torch.Tensor, weight_E: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    normed, total = torch.empty(x_TE.shape, dtype=x_TE.dtype), torch.empty(x_TE.shape, dtype=x_TE.dtype)
    for rows in _blocks(x_TE):
        torch.add(x_TE[rows], residual_TE[rows], out=total[rows])
        _rms_norm_into(normed[rows], total[rows], weight_E, eps)
    return normed, total


def _rms_norm_into(out: torch.Tensor, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> None:
    x = x_TE.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    torch.mul(x, norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_(), out=out)
    out.mul_(weight_E)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    out = torch.empty(gate.shape, dtype=x.dtype)
    for rows in _blocks(x):
        torch.mul(F.silu(gate[rows]), up[rows], out=out[rows])
    return out


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    for rows in _blocks(x):
        out[rows] = torch_ops.quick_gelu(x[rows])
    return out


def _blocks(x: torch.Tensor) -> Iterator[slice]:
    num_rows = max(1, _BLOCK_VALUES * torch.get_num_threads() // max(1, x[:1].numel()))
    for first in range(0, len(x), num_rows):
        yield slice(first, first + num_rows)


def provided_ops(device: torch.device) -> dict[str, Callable[..., object]]:
    """All on a CPU; attention where it has instructions for bfloat16 (AVX512_BF16 or AMX)."""
    if device.type != "cpu":
        return {}
    provided: dict[str, Callable[..., object]] = {
        "rotary": rotary,
        "patch_embed": linear,
        "patch_merge": patch_merge,
        "rms_norm": rms_norm,
        "add_rms_norm": add_rms_norm,
        "swiglu": swiglu,
        "quick_gelu": quick_gelu,
        # Fused into the product before them, where `Linear` can.
        "gelu": torch_ops.gelu,
        "gelu_tanh": torch_ops.gelu_tanh,
    }
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        provided["attention"] = attention
    return provided
