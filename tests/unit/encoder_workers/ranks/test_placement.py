"""The planner: items on their ranks, and which are worth splitting."""

import itertools
import random

import pytest

from encoder_workers.ranks.placement import place_items
from encoder_workers.shares import CostModel, ItemShape

OVERHEAD = 0.05


def split_costs(costs: list[float], splittable: list[bool], num_ranks: int) -> list[float | None]:
    """What splitting costs where each rank gets an equal share and the exchange is a twentieth of the work."""
    return [c * (1 + OVERHEAD) / num_ranks if can else None for c, can in zip(costs, splittable, strict=True)]


def longest(costs: list[float], ranks: tuple[int | None, ...], num_ranks: int) -> float:
    loads = [0.0] * num_ranks
    for cost, owner in zip(costs, ranks, strict=True):
        if owner is None:
            loads = [load + cost * (1 + OVERHEAD) / num_ranks for load in loads]
        else:
            loads[owner] += cost
    return max(loads)


@pytest.mark.parametrize(
    ("costs", "num_ranks", "ranks"),
    [
        ([], 2, ()),
        ([5.0], 2, (None,)),
        ([5.0, 5.0], 2, (0, 1)),
        ([5.0, 5.0, 5.0], 2, (None, 0, 1)),
        ([100.0, 1.0, 1.0], 2, (None, 0, 1)),
        ([4.0, 3.0, 3.0, 2.0], 2, (0, 1, 1, 0)),
        ([9.0, 1.0, 1.0, 1.0], 4, (None, None, None, None)),
        ([90.0, 1.0, 1.0, 1.0, 1.0], 4, (None, 0, 1, 2, 3)),
    ],
)
def test_known_cases(costs: list[float], num_ranks: int, ranks: tuple[int | None, ...]) -> None:
    assert place_items(costs, split_costs(costs, [True] * len(costs), num_ranks), num_ranks) == ranks


def test_what_cannot_be_cut_is_placed_whole() -> None:
    assert place_items([9.0, 1.0], [None, 0.5], 2) == (0, 1)
    assert place_items([9.0], [None], 4) == (0,)


def test_an_item_whose_exchange_takes_longer_than_its_work_stays_whole() -> None:
    assert place_items([5.0], [2.6], 2) == (None,)
    assert place_items([5.0], [5.1], 2) == (0,)


def test_near_the_best_of_all_placements() -> None:
    """Against every possible plan of small batches: LPT's bound of 4/3 holds, with splitting as without."""
    draw = random.Random(3)
    for _ in range(60):
        num_ranks = draw.choice([2, 3])
        costs = [draw.choice([1.0, 2.0, 7.0, 30.0, 31.0]) for _ in range(draw.randint(1, 5))]
        splittable = [draw.random() < 0.7 for _ in costs]
        choices = [[*range(num_ranks), *([None] if can else [])] for can in splittable]
        best = min(longest(costs, plan, num_ranks) for plan in itertools.product(*choices))
        ranks = place_items(costs, split_costs(costs, splittable, num_ranks), num_ranks)
        assert all(can for can, owner in zip(splittable, ranks, strict=True) if owner is None)
        assert longest(costs, ranks, num_ranks) <= best * 4 / 3


def test_costs_see_that_attention_is_quadratic() -> None:
    """One picture of 4,000 patches is more work than forty of 100, which linear balancing takes for equal."""
    model = CostModel(per_row=1000.0, per_pair=1.0)
    large, small = ItemShape((0, 4000), 4000**2), ItemShape((0, 100), 100**2)
    assert model.of(large) == 1000 * 4000 + 4000**2 > 4 * 40 * model.of(small)
