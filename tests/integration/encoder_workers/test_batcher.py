"""Guards: an item that fails and takes others along, an item that is never answered, and passes for nobody."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder_workers.batcher import Batcher, EncodeJob, Outcome
from encoder_workers.checkpoint import Checkpoint
from encoder_workers.encoder import Encoder
from encoder_workers.interface import Tower
from encoder_workers.media import Limits, Media, Prepared
from encoder_workers.registry import find_family, load_family
from npu_kernels import AttentionShape, select_ops
from transfer import BadMedia, Closed, EncodeFailed, EncoderLost, TriptychError
from transfer.errors import OutOfMemory
from transfer.tensors import buffer_to_tensor

WAIT_S = 60.0
CPU = torch.device("cpu")


class FragileTower:
    """The real tower; it records its passes and breaks on the items it is told of."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self.breaks_on: list[torch.Tensor] = []
        self.error: Exception = RuntimeError("a broken item")
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.passes: list[int] = []

    @property
    def width(self) -> int:
        return self._tower.width

    @property
    def layout(self) -> str:
        return self._tower.layout

    @property
    def attention_shape(self) -> AttentionShape:
        return self._tower.attention_shape

    def forward(self, batch: Sequence[Prepared]) -> list[torch.Tensor]:
        self.passes.append(len(batch))
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        if any(torch.equal(item.inputs, bad) for item in batch for bad in self.breaks_on):
            raise self.error
        return self._tower.forward(batch)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


class Bench:
    def __init__(self, checkpoint_dir: Path) -> None:
        checkpoint = Checkpoint(checkpoint_dir)
        family = load_family(find_family(checkpoint))
        self.tower = FragileTower(family.load_tower(checkpoint, select_ops("auto", CPU), CPU, torch.float32))
        self.encoder = Encoder(
            family.load_processor(checkpoint),
            self.tower,
            device=CPU,
            dtype=torch.float32,
            revision="r",
            limits=Limits(),
        )
        self.outcomes: dict[str, list[Outcome]] = {}
        self.changed = threading.Condition()

    def job(self, name: str, data: bytes, wanted: Callable[[], bool] = lambda: True, cost: int = 48) -> EncodeJob:
        def done(outcome: Outcome) -> None:
            with self.changed:
                self.outcomes.setdefault(name, []).append(outcome)
                self.changed.notify_all()

        return EncodeJob(Media("image", data), cost, float(cost), wanted, done)

    def wait(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) == number, WAIT_S), self.outcomes
        time.sleep(0.05)
        assert all(len(outcomes) == 1 for outcomes in self.outcomes.values())

    def expected(self, data: bytes) -> torch.Tensor:
        prepared = self.encoder.preprocess(self.encoder.decode(Media("image", data)))
        (tensor,) = self.tower._tower.forward([prepared])
        return tensor

    def outcome(self, name: str) -> torch.Tensor | TriptychError:
        found = self.outcomes[name][0]
        if isinstance(found, TriptychError):
            return found
        return buffer_to_tensor(found.memory, found.shape, found.dtype)


@pytest.fixture
def bench(checkpoint: Path) -> Iterator[Bench]:
    made = Bench(checkpoint)
    yield made
    made.encoder.close()


@pytest.fixture
def batcher(bench: Bench) -> Iterator[Batcher]:
    made = Batcher(bench.encoder, max_batch_patches=480, target_pass_s=60.0, max_wait_s=0.5, num_prepare_threads=2)
    yield made
    made.close()
    made.close()


def test_items_that_wait_together_share_a_pass(bench: Bench, batcher: Batcher, picture: Any) -> None:
    for seed in range(4):
        batcher.submit(bench.job(str(seed), picture(seed)))
    bench.wait(4)
    assert bench.tower.passes == [4]
    assert batcher.num_encoded == 4
    for seed in range(4):
        torch.testing.assert_close(bench.outcome(str(seed)), bench.expected(picture(seed)), rtol=1e-5, atol=1e-5)


def test_a_pass_is_not_larger_than_allowed_unless_one_item_is(bench: Bench, batcher: Batcher, picture: Any) -> None:
    for seed in range(4):
        batcher.submit(bench.job(str(seed), picture(seed), cost=200))
    bench.wait(4)
    assert bench.tower.passes == [2, 2]
    batcher.submit(bench.job("huge", picture(5), cost=10_000))
    bench.wait(5)
    assert bench.tower.passes == [2, 2, 1]


def test_a_pass_takes_no_longer_than_it_should_as_far_as_the_last_ones_tell(bench: Bench, picture: Any) -> None:
    batcher = Batcher(bench.encoder, 10**6, target_pass_s=1e-6, max_wait_s=0.0, num_prepare_threads=1)
    try:
        batcher.submit(bench.job("first", picture(0)))
        bench.wait(1)
        for seed in range(1, 4):
            batcher.submit(bench.job(str(seed), picture(seed)))
        bench.wait(4)
    finally:
        batcher.close()
    assert bench.tower.passes == [1, 1, 1, 1]


def test_a_bad_item_fails_alone_and_costs_no_pass(bench: Bench, batcher: Batcher, picture: Any) -> None:
    batcher.submit(bench.job("bad", picture(0)[:-40]))
    batcher.submit(bench.job("good", picture(1)))
    bench.wait(2)
    assert isinstance(bench.outcome("bad"), BadMedia)
    assert isinstance(bench.outcome("good"), torch.Tensor)
    assert bench.tower.passes == [1]


def test_a_pass_that_fails_is_repeated_item_by_item(bench: Bench, batcher: Batcher, picture: Any) -> None:
    prepared = bench.encoder.preprocess(bench.encoder.decode(Media("image", picture(1))))
    bench.tower.breaks_on.append(prepared.inputs)
    for seed in range(3):
        batcher.submit(bench.job(str(seed), picture(seed)))
    bench.wait(3)
    assert bench.tower.passes == [3, 1, 1, 1]
    assert isinstance(bench.outcome("1"), EncodeFailed)
    for seed in (0, 2):
        assert torch.equal(bench.outcome(str(seed)), bench.expected(picture(seed)))
    assert (batcher.num_encoded, batcher.num_failed) == (2, 1)
    batcher.submit(bench.job("later", picture(4)))
    bench.wait(4)
    assert isinstance(bench.outcome("later"), torch.Tensor)


@pytest.mark.parametrize("error", [EncoderLost("ranks"), OutOfMemory("full"), RuntimeError("a defect")])
@pytest.mark.parametrize("num_items", [1, 3])
def test_every_item_that_fails_is_counted_once(
    bench: Bench, batcher: Batcher, picture: Any, error: Exception, num_items: int
) -> None:
    bench.tower.error = error
    for seed in range(num_items):
        data = picture(seed)
        bench.tower.breaks_on.append(bench.encoder.preprocess(bench.encoder.decode(Media("image", data))).inputs)
        batcher.submit(bench.job(str(seed), data))
    bench.wait(num_items)
    expected = error.code if isinstance(error, TriptychError) else EncodeFailed.code
    for outcomes in bench.outcomes.values():
        assert isinstance(outcomes[0], TriptychError) and outcomes[0].code == expected
    assert (batcher.num_encoded, batcher.num_failed) == (0, num_items)


def test_whoever_fails_to_take_an_outcome_costs_nobody_else(
    bench: Bench, picture: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An embedding, a failure and a pass that is watched, none of them taken."""

    def broken(_: object) -> None:
        raise ValueError("a defect")

    batcher = Batcher(bench.encoder, 480, 60.0, 0.0, 1, on_pass=broken)
    try:
        for data in (picture(0), picture(1)[:-40]):
            batcher.submit(dataclasses.replace(bench.job("lost", data), done=broken))
        batcher.submit(bench.job("later", picture(2)))
        bench.wait(1)
        batcher.check_health()
    finally:
        batcher.close()
    assert isinstance(bench.outcome("later"), torch.Tensor)
    assert sum("failed" in record.message and record.exc_info is not None for record in caplog.records) >= 3


def test_an_item_that_nobody_wants_costs_nothing(bench: Bench, batcher: Batcher, picture: Any) -> None:
    wanted = {"early": False, "late": True}
    batcher.submit(bench.job("early", picture(0), lambda: wanted["early"]))
    batcher.submit(bench.job("late", picture(1), lambda: wanted["late"]))
    time.sleep(0.1)
    wanted["late"] = False
    batcher.submit(bench.job("kept", picture(2)))
    bench.wait(1)
    assert bench.outcomes.keys() == {"kept"}
    assert bench.tower.passes == [1]


def test_close_ends_in_time_with_items_waiting(bench: Bench, picture: Any) -> None:
    batcher = Batcher(bench.encoder, max_batch_patches=48, target_pass_s=60.0, max_wait_s=0.0, num_prepare_threads=1)
    for seed in range(8):
        batcher.submit(bench.job(str(seed), picture(seed)))
    started = time.monotonic()
    batcher.close()
    assert time.monotonic() - started < WAIT_S
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("triptych-")]


def test_close_drops_what_is_in_no_pass(bench: Bench, picture: Any) -> None:
    batcher = Batcher(bench.encoder, max_batch_patches=48, target_pass_s=60.0, max_wait_s=0.0, num_prepare_threads=1)
    bench.tower.go_on.clear()
    batcher.submit(bench.job("in a pass", picture(0)))
    assert bench.tower.begun.wait(WAIT_S)
    batcher.submit(bench.job("prepared", picture(1)))
    wait_until(lambda: batcher.num_waiting == 1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: batcher.num_waiting == 0)
    bench.tower.go_on.set()
    closing.join(WAIT_S)
    assert bench.outcomes.keys() == {"in a pass"}
    assert bench.tower.passes == [1]
    with pytest.raises(Closed):
        batcher.submit(bench.job("late", picture(2)))


@pytest.mark.parametrize("hangs", ["preparing", "pass"])
def test_close_does_not_wait_for_ever(
    bench: Bench, picture: Any, hangs: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("encoder_workers.batcher._CLOSE_TIMEOUT_S", 0.2)
    batcher = Batcher(bench.encoder, max_batch_patches=48, target_pass_s=60.0, max_wait_s=0.0, num_prepare_threads=1)
    begun = bench.tower.begun
    bench.tower.go_on.clear()

    def wanted() -> bool:
        begun.set()
        return bench.tower.go_on.wait(WAIT_S)

    batcher.submit(bench.job("slow", picture(0), wanted if hangs == "preparing" else lambda: True))
    assert begun.wait(WAIT_S)
    started = time.monotonic()
    batcher.close()
    assert time.monotonic() - started < WAIT_S / 4
    assert "after 0.2 s" in caplog.text
    bench.tower.go_on.set()
    batcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("triptych-")]


def test_a_tower_thread_that_does_not_begin_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr("encoder_workers.batcher._START_TIMEOUT_S", 0.2)
    monkeypatch.setattr("encoder_workers.batcher.give_way", lambda niceness: go_on.wait(WAIT_S))
    with pytest.raises(EncoderLost, match="has not begun"):
        Batcher(bench.encoder, 480, 60.0, 0.0, 1, num_tower_threads=torch.get_num_threads())
    go_on.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("triptych-")])


def test_only_the_towers_thread_computes_on_several(bench: Bench, picture: Any) -> None:
    """Two pools of OpenMP's would be more threads than cores, and it then puts them to sleep after every operation."""
    before = torch.get_num_threads()
    seen: list[int] = []
    batcher = Batcher(
        bench.encoder, 480, 60.0, 0.0, 1, on_pass=lambda _: seen.append(torch.get_num_threads()), num_tower_threads=2
    )
    try:
        assert torch.get_num_threads() == 1
        batcher.submit(bench.job("a", picture(0)))
        bench.wait(1)
    finally:
        batcher.close()
        torch.set_num_threads(before)
    assert seen == [2]
