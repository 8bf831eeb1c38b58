"""Every family over 2, 3, 4 and 6 ranks equals one rank: odd sizes, one large item, many small ones, empty ranks.

The ranks are threads here and exchange what processes would; `tests/integration` has the processes.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_random_checkpoint import make_checkpoint

from encoder_workers import ItemMetadata, Prepared
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.interface import SplitTower
from encoder_workers.ranks import run
from encoder_workers.ranks.exchange import ExchangedAttention
from encoder_workers.ranks.rates import Rates
from encoder_workers.registry import find_family, load_family
from npu_kernels import select_ops
from tests.unit.encoder_workers.encoder_fixtures import noise_rows, write_small_internvl
from tests.unit.encoder_workers.ranks.thread_group import ThreadGroup, on_ranks

CPU = torch.device("cpu")
_RATES = Rates(product_s=1.0, attention_s=1.0, exchange_s=0.01)
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
INTERNVL = ("internvl-opengvlab", "internvl-hf")
PATCH_WIDTH = {"qwen2_vl": 3 * 2 * 14**2, "qwen2_5_vl": 3 * 2 * 14**2} | dict.fromkeys(INTERNVL, 3 * 14**2)
PICTURES = {
    "one large": [(1, 30, 38)],
    "one small": [(1, 2, 2)],
    "many small": [(1, 4, 4), (1, 4, 6), (1, 2, 2), (1, 6, 10), (1, 4, 4), (1, 8, 4), (1, 2, 14)],
    "large among small": [(1, 4, 4), (1, 26, 22), (1, 4, 6), (1, 2, 2)],
    "two large and a video": [(1, 18, 22), (5, 10, 14), (1, 22, 14)],
}
TILES = {
    "one large": [(13, 8, 8)],
    "one small": [(1, 8, 8)],
    "many small": [(1, 8, 8)] * 5,
    "large among small": [(1, 8, 8), (9, 8, 8), (2, 8, 8)],
    "two large and a video": [(7, 8, 8), (5, 8, 8)],
}
CLIPS = {
    "one large": [751],
    "one small": [2],
    "many small": [3, 10, 51, 2, 17, 25],
    "large among small": [5, 401, 13],
    "two large and a video": [233, 312, 100],
}


def clip(num_rows: int, seed: int) -> Prepared:
    features = torch.randn(128, min(2 * num_rows + 1, 3000), generator=torch.Generator().manual_seed(seed))
    return Prepared(features, (1, 1, num_rows), ItemMetadata("audio", num_rows // 2, num_rows, ()))


def batch_of(family: str, case: str) -> list[Prepared]:
    if family == "qwen2_audio":
        return [clip(num_rows, seed) for seed, num_rows in enumerate(CLIPS[case])]
    grids = TILES[case] if family in INTERNVL else PICTURES[case]
    return [noise_rows(grid, PATCH_WIDTH.get(family, 3 * 2 * 16**2), seed) for seed, grid in enumerate(grids)]


@pytest.fixture(scope="module", params=[*QWEN, *INTERNVL, "qwen2_audio"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("ranks") / family
    if family in INTERNVL:
        return Checkpoint(write_small_internvl(directory, family.partition("-")[2], seed=5))
    make_checkpoint(directory, family=family, seed=5)
    return Checkpoint(directory)


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> SplitTower:
    ops = select_ops("auto", CPU)
    return load_family(find_family(checkpoint)).load_tower(checkpoint, ops, CPU, torch.float32)


@pytest.fixture(scope="module")
def one_rank(family: str, tower: SplitTower) -> Callable[[str], tuple[list[Prepared], list[torch.Tensor]]]:
    """A batch, and what one rank makes of it."""

    @functools.cache
    def make(case: str) -> tuple[list[Prepared], list[torch.Tensor]]:
        batch = batch_of(family, case)
        tokens = tower.forward(batch)
        counts = [len(rows) for rows in tokens]
        counted = [replace(i.metadata, num_tokens=n) for i, n in zip(batch, counts, strict=True)]
        return [replace(i, metadata=metadata) for i, metadata in zip(batch, counted, strict=True)], tokens

    return make


def over_ranks(tower: SplitTower, batch: Sequence[Prepared], num_ranks: int) -> tuple[list[torch.Tensor], list]:
    """Tokens of each item, and of each rank its rows and its exchanges."""
    outputs = [torch.full((item.metadata.num_tokens, tower.width), torch.nan) for item in batch]

    def work(group: ThreadGroup) -> tuple[int, int]:
        mine = copy.copy(tower)  # with the same weights, and attention of its own
        ops = mine._ops  # type: ignore[attr-defined]
        mine._ops = replace(ops, attention=ExchangedAttention(ops.attention, group))  # type: ignore[attr-defined]
        return run.run_pass(mine, batch, outputs, group.rank, num_ranks, _RATES), group.num_exchanges

    return outputs, on_ranks(num_ranks, work)


@pytest.mark.parametrize(("num_ranks", "plan"), [(2, "planned"), (4, "planned"), (3, "all split"), (6, "all split")])
@pytest.mark.parametrize("case", PICTURES)
def test_ranks_equal_one_rank(
    family: str, tower: SplitTower, one_rank, case: str, num_ranks: int, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, expected = one_rank(case)
    if plan == "all split":
        monkeypatch.setattr(run, "place_items", lambda costs, split, _: tuple(0 if s is None else None for s in split))
    got, ranks = over_ranks(tower, batch, num_ranks)
    for left, right in zip(got, expected, strict=True):
        assert (left - right).abs().max() < 1e-5 * max(1.0, right.abs().max().item())
    rows = [num_rows for num_rows, _ in ranks]
    assert sum(rows) == sum(tower.shape(item).num_rows for item in batch)
    if case == "one large":
        assert min(rows) > 0.6 * max(rows), "a large item is shared out evenly"
    if case == "one small":
        assert sorted(rows)[:-1] == [0] * (num_ranks - 1), "ranks without rows take part in nothing"


def test_only_what_a_cut_goes_through_is_exchanged(family: str, tower: SplitTower, one_rank) -> None:
    """A large picture takes two exchanges in each layer of full attention, windows and tiles take none."""
    _, ranks = over_ranks(tower, one_rank("one large")[0], 2)
    config = tower._config  # type: ignore[attr-defined]
    full_layers = len(config.full_attention_layers) if family == "qwen2_5_vl" else config.depth
    assert {num for _, num in ranks} == {0 if family in INTERNVL else 2 * full_layers}


def test_frames_inside_a_share_are_not_exchanged(family: str, tower: SplitTower) -> None:
    """Cut between its frames, a video needs no other rank; Qwen2.5-VL's windows of 64 patches end with them here."""
    if family in QWEN:
        _, ranks = over_ranks(tower, [noise_rows((4, 8, 8), PATCH_WIDTH.get(family, 3 * 2 * 16**2), 1)], 4)
        assert ranks == [(64, 0)] * 4
