"""A packed layer computes what the plain one does, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from npu_kernels import Linear
from npu_kernels.linear import linear

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (300,)])
def test_a_packed_layer_computes_what_it_did(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Linear(342, 128, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(*shape, 342).to(dtype)
    expected = nn.Linear.forward(layer, x)
    by_function = linear(x, layer.weight, layer.bias)
    layer.pack()
    for got in (layer(x), by_function):
        assert got.dtype == dtype
        assert (got.float() - expected.float()).norm() <= TOLERANCE[dtype] * expected.float().norm()


def test_a_packed_layer_keeps_one_copy_of_its_weight() -> None:
    layer = Linear(64, 32).requires_grad_(False)
    layer.pack()
    assert layer.weight is None
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
