"""Guards: an embedding fetched twice, a lease released never or twice, a request that waits forever or for nothing."""

import dataclasses
import threading
from typing import Any

import pytest
import torch

from transfer import DeadlineExceeded, EmbeddingNotFound, EncodeFailed, EncoderLost, Incompatible

TENSOR = torch.arange(12, dtype=torch.float32).view(4, 3)


def test_one_fetch_serves_every_request_that_needs_the_item(engine: Any) -> None:
    refs = [engine.announce(TENSOR) for _ in range(3)]
    for number, ref in enumerate(refs):
        engine.start(f"r{number}", ref)
        assert not engine.needs.ready(f"r{number}", ["key"])
    engine.publish(refs[0], TENSOR)
    engine.step_until(lambda: engine.needs.ready("r0", ["key"]))
    assert engine.needs.ready("r1", ["key"])
    assert engine.needs.ready("r2", ["key"])
    assert engine.client.fetched == {refs[0].transfer_id: 1}
    assert torch.equal(engine.load(), TENSOR)
    for number in range(3):
        engine.needs.finish(f"r{number}")
        engine.needs.finish(f"r{number}")
    assert engine.client.released == {ref.transfer_id: 1 for ref in refs}
    engine.step_until(lambda: engine.server.stats().num_leases == 0)
    assert engine.needs.take_unavailable() == set()
    assert engine.failures == {}


def test_what_the_store_holds_is_not_fetched_again(engine: Any) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.publish(first, TENSOR)
    engine.start("r0", first)
    engine.step_until(lambda: engine.needs.ready("r0", ["key"]))
    engine.needs.finish("r0")
    engine.start("r1", second)
    assert engine.needs.ready("r1", ["key"])
    engine.needs.finish("r1")
    assert engine.client.fetched == {first.transfer_id: 1}
    assert engine.client.released == {first.transfer_id: 1, second.transfer_id: 1}


def test_a_request_waits_for_all_of_its_items(engine: Any) -> None:
    one, two = engine.announce(TENSOR, "one"), engine.announce(TENSOR + 1, "two")
    engine.start("r", one, two)
    engine.publish(two, TENSOR + 1)
    engine.step_until(lambda: engine.needs.ready("r", ["two"]))
    assert not engine.needs.ready("r", ["one", "two"])
    engine.publish(one, TENSOR)
    engine.step_until(lambda: engine.needs.ready("r", ["one", "two"]))
    assert torch.equal(engine.load("one"), TENSOR)
    assert torch.equal(engine.load("two"), TENSOR + 1)


def test_when_the_first_source_fails_the_second_requests_own_is_tried(engine: Any) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.start("r0", first)
    engine.start("r1", second)
    assert not engine.needs.ready("r0", ["key"])
    assert not engine.needs.ready("r1", ["key"])
    engine.server.fail(first.transfer_id, EncodeFailed("out of memory"))
    engine.publish(second, TENSOR)
    engine.step_until(lambda: engine.needs.ready("r1", ["key"]))
    assert engine.needs.take_unavailable() == {"r0"}
    assert engine.needs.take_unavailable() == set()
    assert not engine.needs.ready("r0", ["key"])
    assert [type(error) for error in engine.failures["report-r0"]] == [EncodeFailed]
    assert engine.failures.keys() == {"report-r0"}
    assert engine.client.fetched == {first.transfer_id: 1, second.transfer_id: 1}
    assert torch.equal(engine.load(), TENSOR)


def test_when_every_source_fails_each_request_is_told_its_own_reason(engine: Any) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.start("r0", first)
    engine.start("r1", second)
    engine.server.fail(first.transfer_id, EncodeFailed("first"))
    engine.server.release(second.transfer_id)
    told: set[str] = set()

    def both_told() -> bool:
        for request_id in ("r0", "r1"):
            assert not engine.needs.ready(request_id, ["key"])
        told.update(engine.needs.take_unavailable())
        return told == {"r0", "r1"}

    engine.step_until(both_told)
    assert [error.code for error in engine.failures["report-r0"]] == ["encode_failed"]
    assert [error.code for error in engine.failures["report-r1"]] == ["embedding_expired"]
    assert [path for path in engine.files() if "." in path.name] == []


def test_a_source_that_is_gone_fails_the_request(engine: Any) -> None:
    ref = engine.announce(TENSOR)
    engine.start("r", ref)
    engine.server.close()
    engine.needs.ready("r", ["key"])
    engine.step_until(lambda: engine.needs.take_unavailable() == {"r"})
    assert isinstance(engine.failures["report-r"][0], EncoderLost)


def test_a_request_without_a_source_for_its_item_fails(engine: Any) -> None:
    engine.start("r", engine.announce(TENSOR, "other"))
    assert not engine.needs.ready("r", ["key"])
    assert engine.needs.take_unavailable() == {"r"}
    assert isinstance(engine.failures["report-r"][0], EmbeddingNotFound)


def test_the_end_of_its_time_ends_the_wait_of_one_request_only(engine: Any) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.start("r0", first, timeout_s=0.2)
    engine.start("r1", second)
    engine.needs.ready("r0", ["key"])
    engine.needs.ready("r1", ["key"])
    engine.step_until(lambda: engine.needs.take_unavailable() == {"r0"})
    assert isinstance(engine.failures["report-r0"][0], DeadlineExceeded)
    engine.publish(second, TENSOR)
    engine.step_until(lambda: engine.needs.ready("r1", ["key"]))


def test_time_that_ends_before_the_first_step_fails_the_request_too(engine: Any) -> None:
    ref = engine.announce(TENSOR)
    engine.publish(ref, TENSOR)
    engine.start("r", ref, timeout_s=0.0)
    engine.step_until(lambda: not engine.needs.ready("r", ["key"]) and engine.needs.take_unavailable() == {"r"})
    assert isinstance(engine.failures["report-r"][0], DeadlineExceeded)


def test_a_request_fails_once_for_its_first_reason_and_nothing_more_is_fetched_for_it(engine: Any) -> None:
    first, second = engine.announce(TENSOR, "one"), engine.announce(TENSOR, "two")
    engine.start("r", dataclasses.replace(first, fingerprint="another model"), second, timeout_s=0.0)
    assert not engine.needs.ready("r", ["one", "two"])
    assert not engine.needs.ready("r", ["one", "two"])
    assert [type(error) for error in engine.failures["report-r"]] == [Incompatible]
    assert engine.client.fetched == {first.transfer_id: 1}
    assert engine.needs.take_unavailable() == {"r"}


def test_the_last_request_that_leaves_ends_the_fetch(engine: Any) -> None:
    ref = engine.announce(TENSOR)
    engine.start("r", ref)
    assert not engine.needs.ready("r", ["key"])
    engine.needs.finish("r")
    assert engine.client.released == {ref.transfer_id: 1}
    engine.step_until(lambda: engine.server.stats().num_leases == 0)
    engine.step_until(lambda: engine.client.num_pending == 0)
    assert "key" not in engine.store


def test_a_fetch_outlives_its_request_while_another_needs_it(engine: Any) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.start("r0", first)
    engine.start("r1", second)
    assert not engine.needs.ready("r0", ["key"])
    assert not engine.needs.ready("r1", ["key"])
    engine.needs.finish("r0")
    assert engine.client.released == {}
    engine.publish(first, TENSOR)
    engine.step_until(lambda: engine.needs.ready("r1", ["key"]))
    assert engine.client.fetched == {first.transfer_id: 1}
    assert engine.client.released == {first.transfer_id: 1}
    engine.needs.finish("r1")
    assert engine.client.released == {first.transfer_id: 1, second.transfer_id: 1}


@pytest.mark.parametrize("order", [("r0", "r1"), ("r1", "r0")])
def test_a_shared_fetch_ends_with_the_last_of_its_requests(engine: Any, order: tuple[str, str]) -> None:
    first, second = engine.announce(TENSOR), engine.announce(TENSOR)
    engine.start("r0", first)
    engine.start("r1", second)
    engine.needs.ready("r0", ["key"])
    engine.needs.ready("r1", ["key"])
    for request_id in order:
        engine.needs.finish(request_id)
    assert engine.client.released == {first.transfer_id: 1, second.transfer_id: 1}
    engine.step_until(lambda: engine.server.stats().num_leases == 0 and engine.client.num_pending == 0)


def test_close_releases_every_lease_once(engine: Any) -> None:
    refs = [engine.announce(TENSOR), engine.announce(TENSOR), engine.announce(TENSOR, "other")]
    engine.publish(refs[2], TENSOR)
    for number, ref in enumerate(refs):
        engine.start(f"r{number}", ref)
        engine.needs.ready(f"r{number}", [ref.item_key])
    engine.step_until(lambda: engine.needs.ready("r2", ["other"]))
    engine.needs.close()
    engine.needs.close()
    assert engine.client.released == {ref.transfer_id: 1 for ref in refs}
    engine.step_until(lambda: engine.server.stats().num_leases == 0)


def test_no_room_in_shared_memory_is_a_failure_that_another_worker_may_not_have(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = engine.announce(TENSOR)
    engine.publish(ref, TENSOR)
    engine.start("r", ref)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    engine.needs.ready("r", ["key"])
    engine.step_until(lambda: engine.needs.take_unavailable() == {"r"})
    assert [error.code for error in engine.failures["report-r"]] == ["busy"]
    assert [path for path in engine.files() if "." in path.name] == []


def test_a_scheduler_without_work_waits_until_an_embedding_is_there(engine: Any) -> None:
    """Longer than any test lasts, if it were not woken."""
    engine.needs.wait(10_000.0)  # nothing is on its way
    ref = engine.announce(TENSOR)
    engine.start("r", ref)
    assert not engine.needs.ready("r", ["key"])
    publisher = threading.Timer(0.05, engine.publish, (ref, TENSOR))
    publisher.start()
    engine.needs.wait(10_000.0)
    publisher.join()
    assert engine.needs.ready("r", ["key"])
    engine.needs.wait(10_000.0)
    engine.needs.finish("r")


def test_a_scheduler_that_waits_for_an_embedding_hears_of_a_new_request(engine: Any) -> None:
    engine.start("r", engine.announce(TENSOR))
    assert not engine.needs.ready("r", ["key"])
    waker = threading.Timer(0.05, engine.needs.wake)
    waker.start()
    engine.needs.wait(10_000.0)
    waker.join()
    engine.needs.wake()  # before it waits
    engine.needs.wait(10_000.0)
    engine.needs.finish("r")
