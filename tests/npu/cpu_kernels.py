"""CPU kernels for the torch_npu operators we call, written from their documentation.

Each computes what the operator is documented to compute, and refuses what the device is documented to refuse, so that
a call that would fail or be wrong there fails here. `CALLS` counts them: a test can tell that the fused path was taken.
"""

from collections import Counter

import torch

CALLS: Counter[str] = Counter()
LENGTHS: list[tuple[int, ...]] = []
"""Cumulative lengths of each call of the attention."""
_HALF = (torch.float16, torch.bfloat16)


class Refused(RuntimeError):
    """The device would refuse this call."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Refused(what)


def fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    atten_mask: torch.Tensor | None = None,
    actual_seq_lengths: list[int] | None = None,
    actual_seq_lengths_kv: list[int] | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    **others: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    CALLS["attention"] += 1
    rows, heads, head_dim = query.shape
    _require(input_layout == "TND", f"layout {input_layout}")
    _require(all(x.dtype in _HALF and x.dtype == query.dtype for x in (query, key, value)), "half precision only")
    _require(all(x.is_contiguous() and x.dim() == 3 for x in (query, key, value)), "contiguous tensors of rank 3")
    _require(head_dim in (64, 128, 192), f"head dim {head_dim}")
    _require(num_heads == heads and num_key_value_heads in (0, heads), "head counts")
    _require(atten_mask is None and sparse_mode == 0, "a mask where none is meant")
    for lengths in (actual_seq_lengths, actual_seq_lengths_kv):
        _require(lengths is not None and 0 < len(lengths) <= 4096, "1 to 4096 lengths, of queries and of keys")
        steps = [end - start for start, end in zip([0, *lengths], lengths, strict=False)]
        _require(min(steps) > 0 and lengths[-1] == rows, "cumulative lengths without a leading 0, ending at T")
    LENGTHS.append(tuple(actual_seq_lengths))
    out = torch.empty_like(query)
    for start, end in zip([0, *actual_seq_lengths], actual_seq_lengths, strict=False):
        q, k, v = (x[start:end].transpose(0, 1).float() for x in (query, key, value))
        out[start:end] = ((q @ k.transpose(1, 2) * scale).softmax(-1) @ v).transpose(0, 1).to(query.dtype)
    return out, torch.empty(0)


def rotary_mul(
    x: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str = "half", rotate: object = None
) -> torch.Tensor:
    CALLS["rotary"] += 1
    _require(rotary_mode == "half" and rotate is None, f"mode {rotary_mode}")
    _require(x.dim() == r1.dim() == r2.dim() == 4, "rank 4")
    _require(x.dtype == r1.dtype == r2.dtype, "one type")
    _require(x.shape[-1] < 896 and x.shape[-1] % 2 == 0 and r1.shape[-1] == x.shape[-1], "even head dim below 896")
    _require(x.shape[0] < 1000 and x.shape[2] < 1000, "batch and heads below 1000")
    first, second = x.chunk(2, -1)
    return x * r1 + torch.cat((-second, first), -1) * r2


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    CALLS["rms_norm"] += 1
    _require(x.dtype == gamma.dtype and gamma.shape == x.shape[-1:], "weight of the input's type and width")
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x.float() * scale * gamma.float()).to(x.dtype), scale


def add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    CALLS["add_rms_norm"] += 1
    _require(x1.dtype == x2.dtype and x1.shape == x2.shape, "two inputs of one type and shape")
    total = x1 + x2
    normed, scale = rms_norm(total, gamma, epsilon)
    CALLS["rms_norm"] -= 1
    return normed, scale, total


def swiglu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    CALLS["swiglu"] += 1
    _require(x.shape[dim] % 2 == 0, "an even width")
    gate, up = x.float().chunk(2, dim)
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)


def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    CALLS[f"gelu_{approximate}"] += 1
    _require(approximate in ("none", "tanh"), f"approximation {approximate}")
    return torch.ops.aten.gelu(x, approximate=approximate)


def fast_gelu(x: torch.Tensor) -> torch.Tensor:
    """As on A2 and A3 chips; others compute another formula."""
    CALLS["quick_gelu"] += 1
    return x * torch.sigmoid(1.702 * x)


KERNELS = {
    "npu_fused_infer_attention_score": fused_infer_attention_score,
    "npu_rotary_mul": rotary_mul,
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_swiglu": swiglu,
    "npu_gelu": gelu,
    "npu_fast_gelu": fast_gelu,
}


def register() -> torch.library.Library:
    """Register all kernels; they are withdrawn when the returned library is collected."""
    library = torch.library.Library("npu", "IMPL", "CPU")
    for name, kernel in KERNELS.items():
        library.impl(name, kernel)
    return library
