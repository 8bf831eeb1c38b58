"""Measures, when a group starts, what the work takes that a plan weighs: products, attention, exchange."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from encoder_workers.ranks.exchange import Group
from encoder_workers.shares import CostModel
from npu_kernels import AttentionShape, Segments
from npu_kernels.interface import AttentionOp

_ROWS = 512
_MLP_RATIO = 4
_REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """Seconds per multiply-add of a matrix product and of attention, and per value that a rank exchanges."""

    product_s: float
    attention_s: float
    exchange_s: float

    def seconds(self, costs: CostModel) -> CostModel:
        """A cost model of multiply-adds as one of seconds: products grow with the rows, attention with the pairs."""
        return CostModel(costs.per_row * self.product_s, costs.per_pair * self.attention_s)

    def exchange_per_row(self, costs: CostModel) -> float:
        """Seconds for the exchange of a row, in all layers.

        In each layer of full attention, which costs 2 * width per pair, 4 * width values of a row are exchanged: query,
        key and value, and the result.
        """
        return 2 * costs.per_pair * self.exchange_s


def measure_rates(
    attention: AttentionOp, group: Group, shape: AttentionShape, device: torch.device, dtype: torch.dtype
) -> Rates:
    """The mean over the ranks, to the bit the same on each, so that all make the same plan. All ranks call it together.

    They are measured at the same time, as they will compute.
    """
    width = shape.num_heads * shape.head_dim
    x = torch.randn(_ROWS, width, device=device).to(dtype)
    weight = torch.randn(_MLP_RATIO * width, width, device=device).to(dtype)
    heads = x.view(_ROWS, shape.num_heads, shape.head_dim)
    segments, scale = Segments((_ROWS,)), shape.head_dim**-0.5
    sizes = [x.numel() // group.size] * group.size
    sent = x.flatten()[: sum(sizes)].contiguous()
    with torch.inference_mode():
        product_s = _best(lambda: torch.nn.functional.linear(x, weight), device) / (_ROWS * weight.numel())
        attention_s = _best(lambda: attention(heads, heads, heads, segments, scale=scale), device) / (
            2 * _ROWS**2 * width
        )
        exchange_s = _best(lambda: group.all_to_all(sent, sizes, sizes), device) / sent.numel()
    mine = torch.tensor([product_s, attention_s, exchange_s], dtype=torch.float32, device=device)
    sizes = [len(mine)] * group.size
    everyones = group.all_to_all(mine.repeat(group.size), sizes, sizes).view(group.size, -1).cpu().double()
    return Rates(*everyones.mean(dim=0).tolist())


def _best(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of the fastest of a few runs, after one that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.get_device_module(device.type).synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])
