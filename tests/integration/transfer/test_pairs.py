"""Guards: a fetch that hangs or is lost when the two ends of a device pair do not meet, part, or come back."""

from typing import Any

import pytest
import torch

from transfer import EncoderLost
from transfer.channels.hccl_channel import HcclSendChannel
from transfer.channels.pair import ALIGNMENT, AlignedMemory, Meeting, open_store

TENSOR = torch.arange(3_000_000, dtype=torch.float32).view(3000, 1000)
FAR_S = 200.0
WAIT_S = 60.0


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
    channel = client._thread._channels["hccl"]
    monkeypatch.setattr(channel, "_backend", "nccl")
    assert torch.equal(client.fetch(bench.offer(server, TENSOR), FAR_S).result(WAIT_S), TENSOR)
    only = bench.client(channels=["hccl"])
    monkeypatch.setattr(only._thread._channels["hccl"], "_backend", "nccl")
    assert isinstance(only.fetch(bench.offer(server, TENSOR), FAR_S).exception(WAIT_S), EncoderLost)


def test_a_pair_that_was_torn_down_is_made_again(bench: Any, eventually: Any) -> None:
    server, client = bench.server(channels=["hccl"]), bench.client(channels=["hccl"])
    ref = bench.offer(server, TENSOR)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)
    (channel,) = server._channels.values()
    (pair,) = channel._pairs.values()
    pair.close()
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
