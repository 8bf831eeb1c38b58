"""The contract of `transfer/channels/base.py`, over every channel: exact bytes, or a typed error, and nothing kept."""

import dataclasses
import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from transfer import TriptychError, host_id
from transfer.channels import CHANNEL_NAMES, ReceiveChannel, SendChannel, receive_channels, send_channels
from transfer.channels.base import Payload, Reception
from transfer.errors import ProtocolError
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment, Status

ROW_BYTES = 64
ARENA_BYTES = 8 * 1024 * 1024
WAIT_S = 30.0
REQUEST = FetchRequest(1, "id", "key", "print", host_id(), CHANNEL_NAMES, 1.0)


@pytest.fixture(params=CHANNEL_NAMES)
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[SendChannel, ReceiveChannel]]:
    (sender,), (receiver,) = send_channels([request.param], ARENA_BYTES), receive_channels([request.param])
    yield sender, receiver
    for _ in range(2):
        receiver.close()
        sender.close()


def rows(num_rows: int, row_start: int = 0) -> Payload:
    return Payload(memoryview(os.urandom(num_rows * ROW_BYTES)), row_start, num_rows, ROW_BYTES, checksum=7)


def ok(sender: SendChannel, payload: Payload, transfer_id: str = "id") -> FetchReply:
    return FetchReply(1, transfer_id, Status.OK, sender.name, sender.begin(b"peer", payload))


def receive(sender: SendChannel, receiver: ReceiveChannel, payload: Payload, destination: bytearray) -> None:
    assert sender.can_serve(REQUEST, payload)
    reception = receiver.open(ok(sender, payload), memoryview(destination), ROW_BYTES)
    for chunk, data in sender.chunks(1, payload):
        assert not reception.complete
        reception.accept(chunk, data)
    wait_for(reception)


def wait_for(reception: Reception) -> None:
    end = time.monotonic() + WAIT_S
    while not reception.complete:
        assert reception.failure is None
        assert time.monotonic() < end, "never complete"
        time.sleep(0.001)


@pytest.mark.parametrize("num_rows", [1, 3, 16_384, 40_001])
def test_bytes_arrive_exactly_and_again(ends: tuple[SendChannel, ReceiveChannel], num_rows: int) -> None:
    source = rows(num_rows)
    held = ends[0].store(source)
    assert (held.row_start, held.num_rows, held.row_bytes, held.checksum) == (0, num_rows, ROW_BYTES, 7)
    for _ in range(2):
        destination = bytearray(num_rows * ROW_BYTES)
        receive(*ends, held, destination)
        assert destination == source.buffer


def test_parts_touch_only_their_own_rows(ends: tuple[SendChannel, ReceiveChannel]) -> None:
    source = rows(5, row_start=2)
    destination = bytearray(b"\xaa" * (9 * ROW_BYTES))
    receive(*ends, ends[0].store(source), destination)
    assert destination[2 * ROW_BYTES : 7 * ROW_BYTES] == source.buffer
    assert set(destination[: 2 * ROW_BYTES]) | set(destination[7 * ROW_BYTES :]) == {0xAA}


def test_a_part_without_rows_is_complete_at_once(ends: tuple[SendChannel, ReceiveChannel]) -> None:
    held = ends[0].store(rows(0))
    reply = FetchReply(1, "id", Status.OK, ends[0].name, ())
    assert ends[1].open(reply, memoryview(bytearray()), ROW_BYTES).complete
    assert list(ends[0].chunks(1, held)) == []


def test_a_read_that_meets_the_end_of_its_lease_is_right_or_a_typed_error(
    ends: tuple[SendChannel, ReceiveChannel],
) -> None:
    sender, receiver = ends
    for _ in range(20):
        source = rows(1000)
        held = sender.store(source)
        reply, chunks = ok(sender, held), sender.chunks(1, held)
        del held
        gc.collect()
        others = [sender.store(rows(1000)) for _ in range(100)]
        destination = bytearray(1000 * ROW_BYTES)
        try:
            reception = receiver.open(reply, memoryview(destination), ROW_BYTES)
            for chunk, data in chunks:
                reception.accept(chunk, data)
            wait_for(reception)
        except TriptychError:
            continue
        finally:
            others.clear()
        assert destination == source.buffer


def test_memory_is_offered_to_its_own_host_only(ends: tuple[SendChannel, ReceiveChannel]) -> None:
    held = ends[0].store(rows(4))
    elsewhere = dataclasses.replace(REQUEST, host_id="another host")
    assert ends[0].can_serve(elsewhere, held) == (ends[0].name != "shm")


def test_what_the_sender_may_not_send_is_refused(ends: tuple[SendChannel, ReceiveChannel]) -> None:
    sender, receiver = ends
    held = sender.store(rows(4))
    with pytest.raises(ProtocolError):
        receiver.open(ok(sender, held), memoryview(bytearray(4 * ROW_BYTES)), ROW_BYTES).accept(
            Chunk(1, ROW_BYTES), memoryview(bytes(ROW_BYTES))
        )


def test_a_region_that_does_not_exist_or_leaves_its_bounds_is_a_typed_error() -> None:
    (sender,), (receiver,) = send_channels(["shm"], ARENA_BYTES), receive_channels(["shm"])
    real = sender.segments(sender.store(rows(4)))[0].region
    block_id = sender.segments(sender.store(rows(4)))[0].block_id
    for region, offset in [
        ("", 64),
        ("../../etc/passwd", 64),
        (f"{real}/../{real}", 64),
        ("triptych-arena-1-0123456789abcdef", 64),
        (real, 0),
        (real, 63),
        (real, ARENA_BYTES - 1),
        (real, 2**62),
        (real, 4096 + 64),
    ]:
        reply = FetchReply(1, "id", Status.OK, "shm", (Segment(0, 4, 4 * ROW_BYTES, region, offset, block_id),))
        with pytest.raises(TriptychError):
            receiver.open(reply, memoryview(bytearray(4 * ROW_BYTES)), ROW_BYTES)
    receiver.close()
    sender.close()


@pytest.mark.parametrize("names", [[], ["rdma"], ["zmq", "zmq"]])
def test_unknown_and_repeated_channels_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="channels"):
        send_channels(names, ARENA_BYTES)
    with pytest.raises(ValueError, match="channels"):
        receive_channels(names)


TENSOR = torch.randn(100, 64).bfloat16()


@pytest.mark.parametrize(
    ("server_names", "client_names", "tensor", "used"),
    [
        (["zmq"], ["zmq"], TENSOR, "zmq"),
        (["shm", "zmq"], ["shm", "zmq"], TENSOR, "shm"),
        (["shm"], ["zmq", "shm"], TENSOR, "shm"),
        (["shm", "zmq"], ["zmq"], TENSOR, "zmq"),
        (["zmq"], ["shm", "zmq"], TENSOR, "zmq"),
        (["shm", "zmq", "hccl"], ["hccl", "shm", "zmq"], TENSOR, "hccl"),
        (["zmq", "hccl"], ["shm", "hccl"], TENSOR, "hccl"),
        (["shm", "zmq"], ["shm", "zmq"], torch.randn(1000, 512), "zmq"),
    ],
    ids=["zmq", "shm", "only-common-1", "only-common-2", "only-common-3", "hccl", "only-common-4", "no-room-in-arena"],
)
def test_a_pair_uses_the_best_channel_both_have(
    bench: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
    server_names: list[str],
    client_names: list[str],
    tensor: torch.Tensor,
    used: str,
) -> None:
    opened: list[str] = []
    for kind in {type(channel) for channel in receive_channels(CHANNEL_NAMES)}:
        monkeypatch.setattr(kind, "open", _recording(opened, kind.name, kind.open))
    server, client = bench.server(channels=server_names), bench.client(channels=client_names)
    ref = bench.offer(server, tensor)
    for _ in range(2):
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), tensor)
    assert set(opened) == {used}
    client.release(ref)
    eventually(lambda: server.stats().bytes_held == 0)


def _recording(opened: list[str], name: str, real: Any) -> Any:
    def open_(self: Any, *arguments: Any) -> Any:
        opened.append(name)
        return real(self, *arguments)

    return open_


def test_ends_without_a_common_channel_are_incompatible(bench: Any) -> None:
    server, client = bench.server(channels=["shm"]), bench.client(channels=["zmq"])
    error = client.fetch(bench.offer(server, TENSOR), WAIT_S).exception(WAIT_S)
    assert error is not None and "no common channel" in str(error)


def test_shared_memory_crosses_processes_and_goes_with_its_owner(bench: Any, start_encoder: Any) -> None:
    client = bench.client(channels=["shm"])
    for ending in ("stop", "kill"):
        encoder = start_encoder("shm")
        ref = encoder.announce(torch.zeros(300, 512, dtype=torch.bfloat16))
        future = client.fetch(ref, WAIT_S)
        encoder.publish(ref, 5)
        expected = torch.randn(300, 512, generator=torch.Generator().manual_seed(5)).bfloat16()
        assert torch.equal(future.result(WAIT_S), expected)
        if ending == "stop":
            encoder.tell("stop")
        else:
            encoder.process.kill()
            encoder.process.wait(WAIT_S)
    # What a dead encoder left in memory that is still mapped may be read; what is read is right.
    last = client.fetch(ref, WAIT_S)
    assert isinstance(last.exception(WAIT_S), TriptychError) or torch.equal(last.result(), expected)
