"""What plans are made with: measured, and the same on every rank, or two ranks would disagree on who computes what."""

import math

import torch

from encoder_workers.ranks.rates import Rates, measure_rates
from encoder_workers.shares import CostModel
from npu_kernels import AttentionShape, select_ops
from tests.unit.encoder_workers.ranks.thread_group import ThreadGroup, on_ranks

CPU = torch.device("cpu")


def test_every_rank_has_the_same_rates_to_the_bit() -> None:
    attention = select_ops("auto", CPU).attention

    def work(group: ThreadGroup) -> Rates:
        return measure_rates(attention, group, AttentionShape(4, 20), CPU, torch.float32)

    rates = on_ranks(3, work)
    assert rates[0] == rates[1] == rates[2]
    for seconds in (rates[0].product_s, rates[0].attention_s, rates[0].exchange_s):
        assert math.isfinite(seconds) and seconds > 0


def test_costs_become_seconds() -> None:
    rates = Rates(product_s=2.0, attention_s=3.0, exchange_s=0.5)
    costs = CostModel(per_row=10.0, per_pair=8.0)
    assert rates.seconds(costs) == CostModel(per_row=20.0, per_pair=24.0)
    # Of a row of width 4 in one layer of full attention: 8 multiply-adds per pair, 16 values to exchange.
    assert rates.exchange_per_row(costs) == 16 * 0.5
