"""The CPU backend: blocks give the reference's values to the bit, products of tiles its attention."""

from __future__ import annotations

import pytest
import torch

from npu_kernels import Segments, cpu_ops, torch_ops

BFLOAT16 = torch.bfloat16


def draw(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("num_rows", [1, 203, 411])
def test_blocks_of_rows_give_the_references_values(
    dtype: torch.dtype, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, or to its last one where the same sums are made in another order."""
    monkeypatch.setattr(cpu_ops, "_BLOCK_VALUES", 1 << 16)
    heads, cos, sin = draw(num_rows, 8, 80, dtype=dtype), draw(num_rows, 80), draw(num_rows, 80)
    x, residual, weight = draw(num_rows, 1280, dtype=dtype), draw(num_rows, 1280, dtype=dtype), draw(1280, dtype=dtype)
    assert num_rows == 1 or x.numel() > 3 * cpu_ops._BLOCK_VALUES
    normed = cpu_ops.add_rms_norm(x, residual, weight, 1e-6)
    expected = torch_ops.add_rms_norm(x, residual, weight, 1e-6)
    equal = [
        (normed[1], expected[1]),
        (cpu_ops.swiglu(x), torch_ops.swiglu(x)),
        (cpu_ops.quick_gelu(x), torch_ops.quick_gelu(x)),
    ]
    nearly = [
        (cpu_ops.rotary(heads, cos, sin), torch_ops.rotary(heads, cos, sin)),
        (cpu_ops.rms_norm(x, weight, 1e-6), torch_ops.rms_norm(x, weight, 1e-6)),
        (normed[0], expected[0]),
    ]
    assert all(got.dtype == dtype for got, _ in equal + nearly)
    assert all(torch.equal(got, wanted) for got, wanted in equal)
    for got, wanted in nearly:
        torch.testing.assert_close(
            got, wanted, rtol=2 * torch.finfo(dtype).eps, atol=8 * torch.finfo(torch.float32).eps
        )


@pytest.mark.parametrize("lengths", [(256,), (1025,), (2100, 300), (40, 700, 40, 700, 1), (64,) * 70, (128, 16, 200)])
@pytest.mark.parametrize("head_dim", [64, 72, 80])
def test_tiles_attend_as_the_reference_does(lengths: tuple[int, ...], head_dim: int) -> None:
    q, k, v = draw(sum(lengths), 6, head_dim, dtype=BFLOAT16).split(2, dim=1)
    segments, scale = Segments(lengths), head_dim**-0.5
    expected = torch_ops.attention(q.float(), k.float(), v.float(), segments, scale=scale)
    got = cpu_ops.attention(q, k, v, segments, scale=scale)
    assert got.dtype == BFLOAT16
    assert relative(got, expected) < 1e-2


def test_what_all_keys_share_costs_no_precision() -> None:
    """Rounded scores of hundreds would be off by one and more."""
    q, k, v = draw(600, 6, 64).split(2, dim=1)
    shared = 40 * draw(1, 1, 64)
    q, k, v = q.to(BFLOAT16), (k + shared).to(BFLOAT16), v.to(BFLOAT16)
    segments = Segments((600,))
    expected = torch_ops.attention(q.float(), k.float(), v.float(), segments, scale=0.125)
    assert relative(cpu_ops.attention(q, k, v, segments, scale=0.125), expected) < 1e-2


def test_scores_too_large_for_an_exponential_are_left_to_the_reference() -> None:
    q, k, v = (8 * draw(512, 6, 64, dtype=BFLOAT16)).split(2, dim=1)
    segments = Segments((512,))
    expected = torch_ops.attention(q, k, v, segments, scale=0.125)
    assert torch.equal(cpu_ops.attention(q, k, v, segments, scale=0.125), expected)


def test_attention_in_float32_is_the_references() -> None:
    q, k, v = draw(700, 6, 64).split(2, dim=1)
    segments = Segments((400, 300))
    assert torch.equal(
        cpu_ops.attention(q, k, v, segments, scale=0.125), torch_ops.attention(q, k, v, segments, scale=0.125)
    )


def test_no_number_in_is_no_number_out() -> None:
    q, k, v = draw(300, 6, 64, dtype=BFLOAT16).split(2, dim=1)
    k = k.clone()
    k[7, 0, 3] = float("nan")
    got = cpu_ops.attention(q, k, v, Segments((300,)), scale=0.125)
    assert got[:, 0].isnan().all()


def test_only_a_cpu_is_served() -> None:
    assert cpu_ops.provided_ops(torch.device("cuda")) == {}
    assert "rotary" in cpu_ops.provided_ops(torch.device("cpu"))
