"""The reference operators against formulas written out the long way, in float64 where it matters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npu_kernels import Segments, torch_ops


def attention_by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...], scale: float):
    """One dense masked softmax over all rows in float64: no packing, no grouping, no fused kernel."""
    segment_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    scores = (q @ k.transpose(1, 2)) * scale
    scores = scores.masked_fill(segment_of[:, None] != segment_of[None, :], -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_attention_stays_inside_each_segment(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=generator)
    got = torch_ops.attention(q, k, v, Segments(tuple(lengths)), scale=0.3)
    assert (got.double() - attention_by_hand(q, k, v, tuple(lengths), 0.3)).abs().max() < 1e-5


@pytest.mark.parametrize("head_dim", [72, 80, 64])
def test_attention_at_tower_head_dims_with_interleaved_lengths(head_dim: int) -> None:
    lengths = (64, 32, 64, 32, 16, 64)  # window rows of a grid whose right edge is cut
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3 * 4, head_dim, generator=generator)
    q, k, v = qkv.split(4, dim=1)  # strided views, as the tower passes them
    scale = head_dim**-0.5
    got = torch_ops.attention(q, k, v, Segments(lengths), scale=scale)
    assert (got.double() - attention_by_hand(q, k, v, lengths, scale)).abs().max() < 1e-5


def test_rotary_turns_each_pair_by_its_angle() -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64).float()
    angles = torch.randn(5, 4)
    got = torch_ops.rotary(x, angles.cos().repeat(1, 2), angles.sin().repeat(1, 2))
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.exp(1j * angles.double())[:, None, :]
    assert (got.double() - torch.cat((pairs.real, pairs.imag), dim=-1)).abs().max() < 1e-6


def test_patch_embed_is_the_strided_convolution() -> None:
    conv = torch.nn.Conv3d(3, 16, kernel_size=(2, 4, 4), stride=(2, 4, 4))
    patches = torch.randn(10, 3, 2, 4, 4)
    got = torch_ops.patch_embed(patches.flatten(1), conv.weight.flatten(1), conv.bias)
    assert (got - conv(patches).flatten(1)).abs().max() < 1e-5


def test_patch_merge_joins_consecutive_rows() -> None:
    x = torch.randn(8, 3)
    fc1, fc1_bias = torch.randn(5, 12), torch.randn(5)
    fc2, fc2_bias = torch.randn(2, 5), torch.randn(2)
    got = torch_ops.patch_merge(x, fc1, fc1_bias, fc2, fc2_bias, unit=4)
    for token in range(2):
        joined = torch.cat([x[4 * token + i] for i in range(4)]).double()
        inner = fc1.double() @ joined + fc1_bias
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        assert (got[token] - (fc2.double() @ inner + fc2_bias)).abs().max() < 1e-4


def test_norms() -> None:
    x, residual, weight, bias = torch.randn(6, 32), torch.randn(6, 32), torch.randn(32), torch.randn(32)
    total = (x + residual).double()
    rms = total / (total.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    normed, kept = torch_ops.add_rms_norm(x, residual, weight, 1e-6)
    assert (normed - rms).abs().max() < 1e-5
    assert torch.equal(kept, x + residual)
    assert torch.equal(torch_ops.rms_norm(x + residual, weight, 1e-6), normed)
    centred = total - total.mean(-1, keepdim=True)
    layer = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias
    assert (torch_ops.layer_norm(x + residual, weight, bias, 1e-6) - layer).abs().max() < 1e-5


def test_activations_are_three_different_functions_and_the_right_ones() -> None:
    x = torch.linspace(-4, 4, 101)
    exact = x.double() * 0.5 * (1 + torch.erf(x.double() / 2**0.5))
    tanh = 0.5 * x.double() * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3)))
    quick = x.double() / (1 + torch.exp(-1.702 * x.double()))
    for op, formula in ((torch_ops.gelu, exact), (torch_ops.gelu_tanh, tanh), (torch_ops.quick_gelu, quick)):
        assert (op(x) - formula).abs().max() < 1e-6
    assert (exact - tanh).abs().max() > 1e-4
    gate, up = torch.randn(4, 6), torch.randn(4, 6)
    assert (torch_ops.swiglu(torch.cat((gate, up), -1)) - gate / (1 + torch.exp(-gate)) * up).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_type_and_stays_close(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 30, 2, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    got = torch_ops.attention(q, k, v, Segments((10, 20)), scale=0.25)
    assert got.dtype == dtype
    assert (got.double() - attention_by_hand(q, k, v, (10, 20), 0.25)).abs().max() < 2e-2
