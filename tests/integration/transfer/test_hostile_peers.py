"""Guards: a peer whose bytes stop the control thread, go uncounted, or reach a fetch that is not theirs."""

import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import torch
import zmq

from transfer import DeadlineExceeded, FetchRequest, Incompatible, ProtocolError, Release, encode, host_id
from transfer.codec import MAX_CONTROL_BYTES, PROTOCOL_VERSION
from transfer.doorbell import Doorbell
from transfer.messages import Chunk, FetchReply, Segment, Status

TENSOR = torch.arange(24, dtype=torch.float32).view(6, 4)
WAIT_S = 30.0


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    with zmq.Context() as made:
        yield made


def test_malformed_frames_are_counted_and_the_service_goes_on(bench: Any, eventually: Any, context: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    hostile = [
        [b""],
        [b"rubbish"],
        [os.urandom(300)],
        [b"\xdd\xff\xff\xff\xff"],
        [encode(Chunk(1, 0))],
        [encode(FetchReply(1, "x", Status.OK))],
        [encode(Release("x")), b"more"],
        [msgpack.packb([PROTOCOL_VERSION, "Release", {"transfer_id": 5}])],
        [b"", encode(Release("x"))],
        [encode(Release("x" * 257))],
    ]
    with context.socket(zmq.DEALER) as peer:
        peer.connect(server.endpoint)
        for frames in hostile:
            peer.send_multipart(frames)
        eventually(lambda: server.stats().num_malformed == len(hostile))
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
        peer.send(encode(Release(ref.transfer_id)))
        eventually(lambda: server.stats().num_leases == 0)


def test_oversized_frames_and_other_protocols_only_lose_their_own_connection(bench: Any, context: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(server.endpoint)
        peer.send(b"x" * (MAX_CONTROL_BYTES * 4))
        host, port = server.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(1000))
        assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    assert server.stats().num_leases == 1


def test_a_peer_of_another_version_is_told_and_tells(bench: Any, make_ref: Any, context: Any) -> None:
    server = bench.server()
    newer = msgpack.packb([PROTOCOL_VERSION + 1, "FetchRequest", {"unheard": "of"}])
    with context.socket(zmq.DEALER) as peer:
        peer.connect(server.endpoint)
        peer.send(newer)
        assert peer.poll(int(WAIT_S * 1000))
        assert msgpack.unpackb(peer.recv())[2]["status"] == "incompatible"
    with context.socket(zmq.ROUTER) as encoder:
        port = encoder.bind_to_random_port("tcp://127.0.0.1")
        future = bench.client().fetch(make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{port}"), WAIT_S)
        identity, _ = encoder.recv_multipart()
        encoder.send_multipart([identity, newer])
        assert isinstance(future.exception(WAIT_S), Incompatible)


def _fetch_id(request: bytes) -> int:
    fetch_id: int = msgpack.unpackb(request)[2]["fetch_id"]
    return fetch_id


def test_a_lying_encoder_cannot_fill_a_tensor_wrongly(bench: Any, make_ref: Any, context: Any) -> None:
    client = bench.client()
    segment = Segment(0, 6, TENSOR.nbytes)
    with context.socket(zmq.ROUTER) as encoder:
        port = encoder.bind_to_random_port("tcp://127.0.0.1")
        ref = make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{port}")
        for segments, shape, data in [
            ((Segment(0, 6, 2**40),), (6, 4), b""),
            ((segment,), (2**40, 2**10), b""),
            ((segment,), (6, 4), bytes(TENSOR.nbytes + 1)),
            ((Segment(0, 5, 80),), (6, 4), bytes(80)),
        ]:
            future = client.fetch(ref, WAIT_S)
            identity, request = encoder.recv_multipart()
            fetch_id = _fetch_id(request)
            reply = FetchReply(fetch_id, ref.transfer_id, Status.OK, "zmq", segments, shape, "float32")
            encoder.send_multipart([identity, encode(reply)])
            encoder.send_multipart([identity, encode(Chunk(fetch_id, 0)), data])
            assert isinstance(future.exception(WAIT_S), ProtocolError)


def test_what_an_encoder_sent_before_it_went_still_counts(bench: Any, make_ref: Any, context: Any) -> None:
    client = bench.client()
    tensor = torch.randn(2000, 2)
    with context.socket(zmq.ROUTER) as encoder:
        encoder.setsockopt(zmq.SNDHWM, 0)
        port = encoder.bind_to_random_port("tcp://127.0.0.1")
        ref = make_ref("a" * 32, tensor, f"tcp://127.0.0.1:{port}")
        future = client.fetch(ref, WAIT_S)
        identity, request = encoder.recv_multipart()
        fetch_id, rows = _fetch_id(request), tensor.numpy().tobytes()
        segments = (Segment(0, 2000, tensor.nbytes),)
        reply = FetchReply(fetch_id, ref.transfer_id, Status.OK, "zmq", segments, (2000, 2), "float32")
        encoder.send_multipart([identity, encode(reply)])
        for start in range(0, tensor.nbytes, 8):
            encoder.send_multipart([identity, encode(Chunk(fetch_id, start)), rows[start : start + 8]])
        encoder.close(linger=int(WAIT_S * 1000))
    assert torch.equal(future.result(WAIT_S), tensor)


def test_rubbish_stale_and_duplicate_replies_are_dropped(bench: Any, make_ref: Any, context: Any) -> None:
    client = bench.client()
    with context.socket(zmq.ROUTER) as encoder:
        port = encoder.bind_to_random_port("tcp://127.0.0.1")
        ref = make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{port}")
        ended = client.fetch(ref, 0.2)
        identity, request = encoder.recv_multipart()
        stale_id = _fetch_id(request)
        assert isinstance(ended.exception(WAIT_S), DeadlineExceeded)

        future = client.fetch(ref, WAIT_S)
        identity, request = encoder.recv_multipart()
        fetch_id = _fetch_id(request)
        segments = (Segment(0, 6, TENSOR.nbytes),)
        good = FetchReply(fetch_id, ref.transfer_id, Status.OK, "zmq", segments, (6, 4), "float32")
        wrong = bytes(TENSOR.nbytes)
        for frames in [
            [b"rubbish"],
            [encode(good), b"more", b"more"],
            [encode(Chunk(fetch_id, 0))],
            [encode(FetchRequest(1, "a", "b", "c", "d", (), 1.0))],
            [encode(FetchReply(stale_id, ref.transfer_id, Status.OK, "zmq", segments, (6, 4), "float32"))],
            [encode(FetchReply(stale_id, ref.transfer_id, Status.OK, "zmq", segments, (6, 4), "float32")), wrong],
            [encode(FetchReply(fetch_id, "b" * 32, Status.OK, "zmq", segments, (6, 4), "float32")), wrong],
            [encode(Chunk(stale_id, 0)), wrong],
            [encode(Chunk(fetch_id, 0)), wrong],
            [encode(FetchReply(fetch_id, "b" * 32, Status.EXPIRED))],
            [encode(good)],
            [encode(FetchReply(fetch_id, ref.transfer_id, Status.EXPIRED))],
            [encode(Chunk(fetch_id, 0)), TENSOR.numpy().tobytes()],
            [encode(Chunk(fetch_id, 0)), wrong],
        ]:
            encoder.send_multipart([identity, *frames])
        assert torch.equal(future.result(WAIT_S), TENSOR)


@pytest.mark.parametrize("segments, data", [((Segment(0, 6, TENSOR.nbytes),), bytes(TENSOR.nbytes + 1)), ((), b"data")])
def test_data_that_does_not_fit_the_reply_it_comes_with_ends_the_fetch(
    bench: Any, make_ref: Any, context: Any, segments: tuple[Segment, ...], data: bytes
) -> None:
    client = bench.client()
    with context.socket(zmq.ROUTER) as encoder:
        port = encoder.bind_to_random_port("tcp://127.0.0.1")
        ref = make_ref("a" * 32, TENSOR, f"tcp://127.0.0.1:{port}")
        future = client.fetch(ref, WAIT_S)
        identity, request = encoder.recv_multipart()
        reply = FetchReply(_fetch_id(request), ref.transfer_id, Status.OK, "zmq", segments, (6, 4), "float32")
        encoder.send_multipart([identity, encode(reply), data])
        assert isinstance(future.exception(WAIT_S), ProtocolError)


def test_whoever_asks_for_another_item_has_no_bell_rung(bench: Any, eventually: Any, context: Any) -> None:
    server, bells = bench.server(), {key: Doorbell() for key in ("key", "other")}
    ref = bench.announce(server, TENSOR)
    with context.socket(zmq.DEALER) as peer:
        peer.connect(server.endpoint)
        for key in ("other", "key"):
            bell = bells[key].name
            peer.send(encode(FetchRequest(1, ref.transfer_id, key, ref.fingerprint, host_id(), ("zmq",), WAIT_S, bell)))
        eventually(lambda: server.stats().num_parked == 1)
        bench.publish(server, ref, TENSOR)
        assert select.select(list(bells.values()), [], [], 0)[0] == [bells["key"]]
    for doorbell in bells.values():
        doorbell.close()
