"""Shares and segments across ranks: lost or doubled rows, a wrong order, and heads that do not divide evenly."""

import itertools
import random

import pytest
import torch

from encoder_workers import ItemMetadata, Prepared
from encoder_workers.ranks.exchange import ExchangedAttention, head_ranges
from encoder_workers.shares import Share, SplitSegments, attention_segments, even_bounds
from npu_kernels import Segments
from npu_kernels.torch_ops import attention
from tests.unit.encoder_workers.ranks.thread_group import on_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuts", "num_ranks", "bounds"),
    [
        (range(0, 41, 4), 2, (0, 20, 40)),
        (range(0, 41, 4), 4, (0, 12, 20, 32, 40)),
        ((0, 64, 128, 144), 2, (0, 64, 144)),
        ((0, 90, 95, 100), 3, (0, 90, 95, 100)),
        ((0, 5, 10, 100), 3, (0, 5, 10, 100)),
        ((0, 1, 2, 3, 50, 51), 2, (0, 3, 51)),
        ((0, 4), 2, None),
        ((0, 8), 1, (0, 8)),
    ],
)
def test_even_bounds(cuts: tuple[int, ...], num_ranks: int, bounds: tuple[int, ...] | None) -> None:
    assert even_bounds(cuts, num_ranks) == bounds


def test_bounds_are_cuts_and_no_share_is_empty() -> None:
    draw = random.Random(1)
    for _ in range(500):
        cuts = [0, *itertools.accumulate(draw.choice([1, 4, 16, 60]) for _ in range(draw.randint(1, 12)))]
        num_ranks = draw.randint(1, 12)
        bounds = even_bounds(cuts, num_ranks)
        if bounds is None:
            assert len(cuts) <= num_ranks
            continue
        assert len(bounds) == num_ranks + 1 and set(bounds) <= set(cuts)
        assert list(bounds) == sorted(set(bounds)) and (bounds[0], bounds[-1]) == (0, cuts[-1])


def test_heads_are_all_given_once() -> None:
    assert head_ranges(16, 4) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert head_ranges(20, 8)[:5] == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 14)]
    assert head_ranges(2, 4) == [(0, 1), (1, 2), (2, 2), (2, 2)]


def item(num_rows: int) -> Prepared:
    return Prepared(torch.empty(num_rows, 0), (1, 1, num_rows), ItemMetadata("image", num_rows, num_rows, ()))


def random_case(draw: random.Random, num_ranks: int) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    """Segment lengths of some items, and the bounds of each: split anywhere, or whole on some rank."""
    lengths, bounds = [], []
    for _ in range(draw.randint(1, 4)):
        lengths.append([draw.choice([1, 2, 3, 7, 20]) for _ in range(draw.randint(1, 5))])
        num_rows = sum(lengths[-1])
        if num_rows > num_ranks and draw.random() < 0.7:
            bounds.append((0, *sorted(draw.sample(range(1, num_rows), num_ranks - 1)), num_rows))
        else:
            owner = draw.randrange(num_ranks)
            bounds.append(tuple(0 if rank <= owner else num_rows for rank in range(num_ranks + 1)))
    return lengths, bounds


@pytest.mark.parametrize(("num_ranks", "num_heads"), [(2, 4), (2, 5), (3, 4), (4, 2), (4, 8)])
def test_attention_over_ranks_is_attention(num_ranks: int, num_heads: int) -> None:
    draw = random.Random(num_ranks * 100 + num_heads)
    num_split, num_mixed = 0, 0
    for seed in range(40):
        lengths, bounds = random_case(draw, num_ranks)
        generator = torch.Generator().manual_seed(seed)
        qkv = [torch.randn(3, sum(of_item), num_heads, 8, generator=generator) for of_item in lengths]
        expected = [
            attention(*rows.unbind(0), Segments(tuple(of_item)), scale=0.3)
            for rows, of_item in zip(qkv, lengths, strict=True)
        ]

        def work(group, lengths=lengths, bounds=bounds, qkv=qkv):
            shares, mine = [], []
            for index, bound in enumerate(bounds):
                share = Share(item(bound[-1]), bound, group.rank)
                is_whole = len(set(bound)) == 2
                if share.num_rows or not is_whole:
                    shares.append(share if not is_whole else Share(share.item, (0, bound[-1]), 0))
                    mine.append((index, share))
            if not shares:
                return None, []
            segments = attention_segments(shares, [lengths[index] for index, _ in mine], CPU)
            rows = torch.cat([qkv[index][:, share.first : share.last] for index, share in mine], dim=1)
            out = ExchangedAttention(attention, group)(*rows.unbind(0), segments, scale=0.3)
            return segments, list(zip(mine, out.split([share.num_rows for _, share in mine]), strict=True))

        results = on_ranks(num_ranks, work)
        got = [torch.full_like(rows, torch.nan) for rows in expected]
        for segments, parts in results:
            num_split += isinstance(segments, SplitSegments)
            num_mixed += isinstance(segments, SplitSegments) and segments.local is not None
            for (index, share), rows in parts:
                got[index][share.first : share.last] = rows
        for left, right in zip(got, expected, strict=True):
            assert (left - right).abs().max() < 1e-5
    assert num_split > 20 and num_mixed > 10


def test_local_operators_do_not_take_split_segments() -> None:
    """They count other ranks' rows: a tower whose attention reaches no other rank must not give an answer."""
    segments = attention_segments([Share(item(8), (0, 4, 8), 0)], [(8,)], CPU)
    assert isinstance(segments, SplitSegments)
    with pytest.raises(AssertionError):
        attention(*torch.ones(3, 4, 2, 8).unbind(0), segments, scale=1.0)
