"""Guards: a fetch that hangs or is lost when the two ends of a device pair do not meet, part, or come back.

And one that waits behind another that nobody takes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from transfer import Closed, DeadlineExceeded, EncoderLost
from transfer.channels.base import Payload, Reception
from transfer.channels.hccl_channel import HcclReceiveChannel, HcclSendChannel, _PairThread
from transfer.channels.pair import ALIGNMENT, AlignedMemory, Meeting, open_store
from transfer.messages import FetchReply, Segment, Status

TENSOR = torch.arange(3_000_000, dtype=torch.float32).view(3000, 1000)
FAR_S = 200.0
WAIT_S = 60.0
ROW_BYTES = 1000
NUM_ROWS = 5000


class Ends:
    """Both ends of the channel, without the control connection between them."""

    def __init__(self) -> None:
        self.sender, self.receiver = HcclSendChannel("127.0.0.1", "cpu"), HcclReceiveChannel("cpu")

    def reply(self, number: int) -> FetchReply:
        """Send a payload of such bytes; the answer to its fetch."""
        payload = Payload(memoryview(bytes([number]) * (NUM_ROWS * ROW_BYTES)), 0, NUM_ROWS, ROW_BYTES)
        return FetchReply(number, "id", Status.OK, "hccl", self.sender.begin(b"peer", payload))

    def open(self, reply: FetchReply) -> tuple[Reception, bytearray]:
        destination = bytearray(NUM_ROWS * ROW_BYTES)
        return self.receiver.open(reply, memoryview(destination), ROW_BYTES), destination


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    monkeypatch.setattr("transfer.channels.pair._TRANSFER_S", 5.0)
    made = Ends()
    yield made
    made.receiver.close()
    made.sender.close()


@pytest.mark.parametrize("declined", [{1}, {2}, {1, 2, 4}])
def test_what_nobody_opens_holds_up_nothing_behind_it(ends: Ends, eventually: Any, declined: set[int]) -> None:
    replies = {number: ends.reply(number) for number in range(1, 6)}
    opened = {}
    for number in range(1, 5):
        if number in declined:
            ends.receiver.decline(replies[number])
        else:
            opened[number] = ends.open(replies[number])
    for number in range(1, 5):  # again, and what was opened
        ends.receiver.decline(replies[number])
    opened[5] = ends.open(replies[5])
    for number, (reception, destination) in opened.items():
        eventually(lambda reception=reception: reception.complete or reception.failure is not None)
        assert reception.failure is None
        assert set(destination) == {number}
    assert len(ends.receiver._pairs) == 1


def test_what_is_too_large_to_receive_for_nobody_ends_its_pair_and_another_is_made(
    ends: Ends, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer.channels.hccl_channel._MAX_DECLINED_BYTES", NUM_ROWS * ROW_BYTES - 1)
    ends.receiver.decline(ends.reply(1))
    (sending,), (receiving,) = ends.sender._pairs.values(), ends.receiver._pairs.values()
    eventually(lambda: receiving.is_over.is_set() and sending.is_over.is_set())
    reception, destination = ends.open(ends.reply(2))
    eventually(lambda: reception.complete or reception.failure is not None)
    assert set(destination) == {2}


@pytest.mark.parametrize(
    "segments",
    [
        (),
        (Segment(0, 1, 4, "nowhere", 1),),
        (Segment(0, 1, 4, "nccl:aa:5:h", 1),),
        (Segment(0, 1, 4, "gloo:aa:5:h", 1),) * 2,
    ],
)
def test_what_cannot_have_been_sent_is_declined_without_a_pair(ends: Ends, segments: tuple[Segment, ...]) -> None:
    ends.receiver.decline(FetchReply(1, "id", Status.OK, "hccl", segments))
    assert not ends.receiver._pairs


@pytest.mark.parametrize("make", [lambda ends: ends.sender, lambda ends: ends.receiver], ids=["sender", "receiver"])
def test_many_pairs_that_do_not_end_take_no_longer_to_close_than_one(ends: Ends, make: Callable[[Ends], Any]) -> None:
    channel, let_go = make(ends), threading.Event()

    def meet() -> Any:
        assert let_go.wait(WAIT_S)
        raise RuntimeError("nobody came")

    threads = [_PairThread(Meeting("127.0.0.1", 5, "gloo", str(number)), meet) for number in range(8)]
    channel._pairs.update((thread.meeting.nonce, thread) for thread in threads)
    started = time.monotonic()
    channel.close()
    assert time.monotonic() - started < 4.0
    let_go.set()
    for thread in threads:
        assert thread.is_over.wait(WAIT_S)


def test_a_pair_that_is_stopped_does_not_run_what_is_queued(eventually: Any) -> None:
    running, let_go, told = threading.Event(), threading.Event(), []

    class _Pair:
        def close(self) -> None:
            told.append("closed")

    def block(pair: Any) -> None:
        running.set()
        assert let_go.wait(WAIT_S)
        told.append(pair is not None)

    thread = _PairThread(Meeting("127.0.0.1", 5, "gloo", "aa"), lambda: _Pair())  # type: ignore[arg-type, return-value]
    thread.put(block)
    for _ in range(2):
        thread.put(lambda pair: told.append(pair is not None))
    assert running.wait(WAIT_S)
    thread.stop()
    let_go.set()
    thread.join(WAIT_S)
    assert told == [True, False, False, "closed"]


def test_one_pair_serves_many_fetches_and_another_client_gets_its_own(bench: Any) -> None:
    server = bench.server(channels=["hccl"])
    refs = [bench.offer(server, TENSOR[: 1 + 500 * number]) for number in range(6)]
    for client in (bench.client(channels=["hccl"]), bench.client(channels=["hccl"])):
        futures = [client.fetch(ref, FAR_S) for ref in refs]
        for number, future in enumerate(futures):
            assert torch.equal(future.result(WAIT_S), TENSOR[: 1 + 500 * number])
    (channel,) = server._channels.values()
    assert len(channel._pairs) == 2


def test_ranks_send_their_own_rows_over_their_own_pairs(bench: Any, make_ref: Any) -> None:
    ranks, client = [bench.server(channels=["hccl"]) for _ in range(3)], bench.client(channels=["hccl"])
    ref = make_ref("a" * 32, TENSOR, *(rank.endpoint for rank in ranks))
    for rank in ranks:
        rank.announce(ref.transfer_id, ref.item_key, *TENSOR.shape, "float32")
    future = client.fetch(ref, FAR_S)
    for rank, (start, end) in zip(ranks, [(0, 1700), (1700, 3000), (3000, 3000)], strict=True):
        part = TENSOR[start:end]
        rank.publish(ref.transfer_id, memoryview(part.numpy().tobytes()), tuple(part.shape), "float32", start)
    assert torch.equal(future.result(WAIT_S), TENSOR)


def test_a_pair_that_does_not_meet_falls_back_without_losing_the_request(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = bench.server(channels=["hccl", "zmq"]), bench.client(channels=["hccl", "zmq"])
    ref = bench.offer(server, TENSOR)
    real = HcclSendChannel._start

    def elsewhere(self: HcclSendChannel, peer: bytes) -> Any:
        started = real(self, peer)
        store, port = open_store("127.0.0.1")
        del store  # nobody answers there any more
        started.meeting = Meeting("127.0.0.1", port, "gloo", started.meeting.nonce)
        return started

    monkeypatch.setattr(HcclSendChannel, "_start", elsewhere)
    monkeypatch.setattr("transfer.channels.pair._MEET_S", 1.0)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)


def test_devices_that_do_not_speak_the_same_fall_back(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = bench.server(channels=["hccl", "zmq"]), bench.client(channels=["hccl", "zmq"])
    channel = client._thread._exchange._channels["hccl"]
    monkeypatch.setattr(channel, "_backend", "nccl")
    assert torch.equal(client.fetch(bench.offer(server, TENSOR), FAR_S).result(WAIT_S), TENSOR)
    only = bench.client(channels=["hccl"])
    monkeypatch.setattr(only._thread._exchange._channels["hccl"], "_backend", "nccl")
    assert isinstance(only.fetch(bench.offer(server, TENSOR), FAR_S).exception(WAIT_S), EncoderLost)


def test_a_pair_that_was_torn_down_is_made_again(bench: Any, eventually: Any) -> None:
    server, client = bench.server(channels=["hccl"]), bench.client(channels=["hccl"])
    ref = bench.offer(server, TENSOR)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)
    (channel,) = server._channels.values()
    (pair,) = channel._pairs.values()
    pair.stop()
    eventually(pair.is_over.is_set)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)


def test_an_encoder_that_dies_ends_the_fetch(bench: Any, start_encoder: Any) -> None:
    encoder, client = start_encoder("hccl"), bench.client(channels=["hccl"])
    first, second = encoder.announce(TENSOR), encoder.announce(TENSOR)
    encoder.publish(first, 3)
    expected = torch.randn(*TENSOR.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(client.fetch(first, FAR_S).result(WAIT_S), expected)
    waiting = client.fetch(second, FAR_S)
    encoder.process.kill()
    assert isinstance(waiting.exception(WAIT_S), EncoderLost)


def test_memory_for_devices_is_aligned_and_used_again() -> None:
    memory = AlignedMemory(torch.device("cpu"))
    for num_bytes in (1, 100, ALIGNMENT + 1, 5, 3 * ALIGNMENT):
        taken = memory.take(num_bytes)
        assert taken.numel() == num_bytes
        assert taken.data_ptr() % ALIGNMENT == 0
    assert memory.take(1).data_ptr() == taken.data_ptr()


@pytest.mark.parametrize(
    "region", ["", "gloo", "gloo:aa:0:h", "tcp:aa:5:h", "gloo:a/a:5:h", "gloo:aa:x:h", "gloo:aa:5:"]
)
def test_what_is_no_place_to_meet_is_refused(region: str) -> None:
    with pytest.raises(ValueError):
        Meeting.from_region(region)
    assert Meeting.from_region("gloo:00ff:5:fe80::1") == Meeting("fe80::1", 5, "gloo", "00ff")


def test_a_fetch_that_ended_stalls_none_behind_it(bench: Any) -> None:
    server, client = bench.server(channels=["hccl", "zmq"]), bench.client(channels=["hccl", "zmq"])
    assert torch.equal(client.fetch(bench.offer(server, TENSOR), FAR_S).result(WAIT_S), TENSOR)

    def no_memory(num_bytes: int) -> memoryview:
        raise Closed(f"nobody waits for {num_bytes} bytes")

    late = bench.announce(server, TENSOR)
    assert isinstance(client.fetch(late, 0.2).exception(WAIT_S), DeadlineExceeded)
    unwanted = bench.announce(server, TENSOR)
    aborted = client.fetch(unwanted, FAR_S, no_memory)
    assert bench.publish(server, late, TENSOR) and bench.publish(server, unwanted, TENSOR)
    assert isinstance(aborted.exception(WAIT_S), Closed)
    behind = client.fetch(bench.offer(server, TENSOR), FAR_S)
    assert torch.equal(behind.result(WAIT_S), TENSOR)
    (channel,) = (channel for channel in client._thread._exchange._channels.values() if channel.name == "hccl")
    assert [pair.is_over.is_set() for pair in channel._pairs.values()] == [False]
