"""Guards: an engine that reads an encoder's memory after it was used again, or that never gives it back."""

import subprocess
import sys
import zlib
from typing import Any

import pytest
import torch

from llm_workers.embedding_store import STEPS_IN_FLIGHT
from transfer.channels.pair import Meeting
from transfer.channels.shm_channel import ShmSendChannel

CPU = torch.device("cpu")
ROWS = torch.arange(40_000, dtype=torch.float32).view(400, 100)
ROOM = 1 << 20


def is_given_back(engine: Any) -> bool:
    (arena, _) = engine.senders
    assert isinstance(arena, ShmSendChannel)
    return arena.num_free_bytes == ROOM


def start(engine: Any, request_id: str, tensor: torch.Tensor = ROWS) -> Any:
    ref = engine.announce(tensor)
    engine.publish(ref, tensor)
    engine.start(request_id, ref)
    engine.step_until(lambda: engine.needs.ready(request_id, ["key"]))
    return ref


def test_an_embedding_on_this_host_is_lent_and_goes_back_when_its_request_ends(nearby_engine: Any) -> None:
    engine = nearby_engine
    for number in range(3):  # the first is asked for, the others are seen on the board
        ref = start(engine, f"r{number}")
        assert [path for path in engine.files() if "." in path.name] == []
        (stored,) = engine.store.list_for_step(["key"])
        assert stored.is_lent
        loaded = stored.load(CPU)
        assert torch.equal(loaded, ROWS)
        engine.needs.finish(f"r{number}", all_loaded=True)
        assert "key" not in engine.store
        assert engine.client.released[ref.transfer_id] == 1
        engine.step_until(lambda: is_given_back(engine))
        assert torch.equal(loaded, ROWS)
        loaded.zero_()


def test_what_is_ready_is_there_in_the_first_step(nearby_engine: Any) -> None:
    engine = nearby_engine
    start(engine, "first")
    ref = engine.announce(ROWS + 1, "other")
    engine.publish(ref, ROWS + 1)
    engine.start("r", ref)
    assert engine.needs.ready("r", ["other"])
    assert torch.equal(engine.load("other"), ROWS + 1)


def test_a_lent_embedding_survives_release_reuse_and_the_encoders_end(nearby_engine: Any) -> None:
    engine = nearby_engine
    ref = start(engine, "r")
    engine.server.release(ref.transfer_id)
    engine.step_until(lambda: engine.server.stats().num_leases == 0)
    fillers = []
    while engine.server.place(torch.zeros(8, 2048)) is not None:
        fillers.append(engine.server.place(torch.zeros(8, 2048)))
    assert fillers
    assert torch.equal(engine.load(), ROWS)
    engine.server.close()
    assert torch.equal(engine.load(), ROWS)
    engine.needs.finish("r", all_loaded=True)


def test_an_aborted_request_keeps_it_while_a_step_may_still_load_it(nearby_engine: Any) -> None:
    engine = nearby_engine
    start(engine, "r")
    (stored,) = engine.store.list_for_step(["key"])
    engine.needs.finish("r")
    for _ in range(STEPS_IN_FLIGHT):
        engine.store.list_for_step([])
        assert not is_given_back(engine)
        assert torch.equal(stored.load(CPU), ROWS)
    engine.store.list_for_step([])
    engine.step_until(lambda: is_given_back(engine))


def test_two_requests_share_one_loan(nearby_engine: Any) -> None:
    engine = nearby_engine
    start(engine, "r0")
    second = engine.announce(ROWS)
    engine.start("r1", second)
    assert engine.needs.ready("r1", ["key"])
    engine.needs.finish("r0", all_loaded=True)
    assert torch.equal(engine.load(), ROWS)
    engine.needs.finish("r1", all_loaded=True)
    engine.step_until(lambda: is_given_back(engine))


@pytest.mark.parametrize("published", [False, True])
def test_a_fetch_that_nobody_waits_for_any_more_holds_nothing(nearby_engine: Any, published: bool) -> None:
    engine = nearby_engine
    ref = engine.announce(ROWS)
    engine.start("r", ref)
    assert not engine.needs.ready("r", ["key"])
    if published:
        engine.publish(ref, ROWS)
        engine.step_until(lambda: engine.client.num_pending == 0)
    engine.needs.finish("r")
    engine.step_until(lambda: engine.server.stats().num_leases == 0)
    engine.step_until(lambda: is_given_back(engine))
    assert "key" not in engine.store


def test_what_finds_no_room_in_the_arena_comes_over_the_network(nearby_engine: Any) -> None:
    engine = nearby_engine
    large = torch.randn(3000, 100)
    start(engine, "r", large)
    (stored,) = engine.store.list_for_step(["key"])
    assert not stored.is_lent
    assert torch.equal(stored.load(CPU), large)


def test_memory_for_a_channel_that_failed_is_freed_when_another_lends_the_embedding(
    device_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(meeting: Meeting) -> None:
        raise RuntimeError("no link")

    monkeypatch.setattr("transfer.channels.hccl_channel.join_store", no_link)
    monkeypatch.setattr("transfer.channels.pair._MEET_S", 0.1)
    engine = device_engine
    start(engine, "r")
    (stored,) = engine.store.list_for_step(["key"])
    assert stored.is_lent
    assert [path for path in engine.files() if "." in path.name] == []


def test_two_workers_in_processes_of_their_own_read_the_same_bytes(nearby_engine: Any) -> None:
    engine = nearby_engine
    start(engine, "r")
    (stored,) = engine.store.list_for_step(["key"])
    engine.server.close()  # the file is gone by name; the scheduler's process still has it
    script = (
        "import sys, zlib, torch; from llm_workers.embedding_segment import StoredEmbedding;"
        f"loaded = StoredEmbedding('key', {stored.path!r}, {stored.offset}, {stored.shape}, 'float32', True)"
        ".load(torch.device('cpu')); sys.stdout.write(str(zlib.crc32(loaded.numpy())))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(2)]
    sums = [worker.communicate(timeout=120)[0].decode() for worker in workers]
    assert sums == [str(zlib.crc32(ROWS.numpy()))] * 2
    assert engine.client.fetched.total() == 1
    engine.needs.finish("r", all_loaded=True)
