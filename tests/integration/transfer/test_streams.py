"""Guards: what only the connections of large embeddings can do wrong, against a peer of the test's own."""

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import zmq

from transfer import (
    ClientSettings,
    EmbeddingNotFound,
    EmbeddingRef,
    EncoderLost,
    FetchReply,
    FetchRequest,
    Segment,
    Status,
    decode,
    encode,
)
from transfer.errors import DeadlineExceeded
from transfer.messages import Chunk
from transfer.stream import StreamLink
from transfer.tensors import buffer_to_tensor, tensor_to_buffer
from transfer.zmtp import GREETING, PING, READY, command, frame

LARGE = torch.arange(2**20, dtype=torch.float32).view(1024, 1024)
FAR_S = 200.0
WAIT_S = 60.0
QUICK = ClientSettings(liveness_s=1.0)


class Peer:
    """An encoder by hand: takes one connection and does on it what it is told."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._socket: socket.socket | None = None

    def another(self) -> "Peer":
        """For a second connection to the same address."""
        other = Peer.__new__(Peer)
        other._listener, other.endpoint, other._socket = self._listener.dup(), self.endpoint, None
        return other

    def accept(self) -> None:
        """Take the connection, up to the end of the handshake."""
        self._socket, _ = self._listener.accept()
        self._socket.settimeout(WAIT_S)
        self.send(GREETING + READY)
        assert self._take(len(GREETING)) == GREETING
        assert self._take(len(READY)) == READY

    def send(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(data)

    def request(self) -> FetchRequest:
        """The next fetch, whatever pings come before it."""
        while True:
            flags, num_bytes = self._take(2)
            if flags & 2:
                num_bytes = int.from_bytes(bytes([num_bytes]) + self._take(7), "big")
            body = self._take(num_bytes)
            if not flags & 4:
                return decode(body, FetchRequest)

    def reply(self, request: FetchRequest) -> None:
        segment = Segment(0, LARGE.shape[0], LARGE.nbytes)
        shape = tuple(LARGE.shape)
        ok = FetchReply(request.fetch_id, request.transfer_id, Status.OK, "zmq", (segment,), shape, "float32")
        self.send(frame(encode(ok)))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._listener.close()

    def _take(self, num_bytes: int) -> bytes:
        assert self._socket is not None
        data = b""
        while len(data) < num_bytes:
            piece = self._socket.recv(num_bytes - len(data))
            assert piece, "the client went away"
            data += piece
        return data


def data_message(fetch_id: int) -> bytes:
    header = frame(encode(Chunk(fetch_id, 0)))
    return bytes([header[0] | 1]) + header[1:] + frame(bytes(tensor_to_buffer(LARGE)))


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def ref_at(make_ref: Any, endpoint: str) -> EmbeddingRef:
    made: EmbeddingRef = make_ref("0" * 32, LARGE, endpoint)
    return made


def test_memory_of_a_fetch_that_ended_is_not_written_any_more(bench: Any, make_ref: Any, peer: Peer) -> None:
    client, ref = bench.client(ClientSettings(liveness_s=WAIT_S)), ref_at(make_ref, peer.endpoint)
    memory = bytearray(LARGE.nbytes)
    first = client.fetch(ref, 3.0, lambda num_bytes: memoryview(memory))
    peer.accept()
    request = peer.request()
    peer.reply(request)
    message = data_message(request.fetch_id)
    peer.send(message[: len(message) // 2])
    assert isinstance(first.exception(WAIT_S), DeadlineExceeded)
    assert any(memory), "the first half was to be there already"
    memory[:] = b"\xaa" * len(memory)  # as whoever gets this memory next would

    second = client.fetch(ref, FAR_S)
    peer.send(message[len(message) // 2 :])
    request = peer.request()
    peer.reply(request)
    peer.send(data_message(request.fetch_id))
    assert torch.equal(second.result(WAIT_S), LARGE)
    assert set(memory) == {0xAA}


def test_an_embedding_arrives_however_slowly_its_bytes_come(bench: Any, make_ref: Any, peer: Peer) -> None:
    future = bench.client(QUICK).fetch(ref_at(make_ref, peer.endpoint), FAR_S)
    peer.accept()
    request = peer.request()
    peer.reply(request)
    message = data_message(request.fetch_id)
    pieces = [*range(100), *range(100, len(message), 2**18), len(message)]
    for start, end in itertools.pairwise(pieces):
        peer.send(message[start:end])
        time.sleep(0.02)
    assert torch.equal(future.result(WAIT_S), LARGE)


def test_answers_that_arrive_together_are_all_taken(bench: Any, make_ref: Any, peer: Peer) -> None:
    client, ref = bench.client(ClientSettings(liveness_s=FAR_S)), ref_at(make_ref, peer.endpoint)
    futures = [client.fetch(ref, FAR_S) for _ in range(12)]
    peer.accept()
    requests = [peer.request() for _ in futures]
    refusals = [FetchReply(request.fetch_id, request.transfer_id, Status.NOT_FOUND) for request in requests]
    peer.send(b"".join(frame(encode(refusal)) for refusal in refusals))
    assert all(isinstance(future.exception(WAIT_S), EmbeddingNotFound) for future in futures)


def test_memory_is_that_of_the_fetch_itself(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    memory = bytearray(LARGE.nbytes)
    tensor = client.fetch(bench.offer(server, LARGE), FAR_S, lambda num_bytes: memoryview(memory)).result(WAIT_S)
    assert torch.equal(tensor, LARGE)
    assert torch.equal(buffer_to_tensor(memoryview(memory), tuple(LARGE.shape), "float32"), LARGE)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(64),
        GREETING.replace(b"NULL\0", b"CURVE"),
        GREETING + READY + b"\x02" + b"\xff" * 8,
        GREETING + READY + b"\x08\x00",
        b"",
    ],
)
def test_a_peer_that_speaks_something_else_is_lost(bench: Any, make_ref: Any, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)

        def answer() -> None:
            connection, _ = listener.accept()
            connection.sendall(said)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        future = bench.client(QUICK).fetch(ref_at(make_ref, endpoint), FAR_S)
        assert isinstance(future.exception(WAIT_S), EncoderLost)


def test_a_peer_that_falls_silent_is_lost(bench: Any, make_ref: Any, peer: Peer) -> None:
    future = bench.client(QUICK).fetch(ref_at(make_ref, peer.endpoint), FAR_S)
    peer.accept()
    peer.reply(peer.request())
    started = time.monotonic()
    assert isinstance(future.exception(WAIT_S), EncoderLost)
    assert time.monotonic() - started < WAIT_S / 2


def test_a_client_that_did_not_run_asks_before_it_believes_in_silence(peer: Peer) -> None:
    host, _, port = peer.endpoint.removeprefix("tcp://").partition(":")
    link, poller = StreamLink(peer.endpoint, (host, int(port)), 1.0, lambda *_: None), zmq.Poller()

    def reason_after(wait_s: float) -> str | None:
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0:
            link.watch(poller)
            poller.poll(left_s * 1000)
            link.receive()
        return link.lost_reason(())

    accepted = threading.Thread(target=peer.accept)
    accepted.start()
    while not link.may_send:
        assert reason_after(0.1) is None
    accepted.join(WAIT_S)
    link.send(b"anything")
    link.fetch_ids.add(1)
    time.sleep(2.0)  # twice what the peer may be silent
    assert link.lost_reason(()) is None
    peer.send(command(b"PONG", b""))
    assert reason_after(0.9) is None
    assert reason_after(0.9) == "fell silent"
    link.close()


def test_a_peer_that_floods_does_not_keep_the_client_from_others(bench: Any, make_ref: Any, peer: Peer) -> None:
    server, client = bench.server(), bench.client(ClientSettings(liveness_s=WAIT_S))
    flooded = client.fetch(ref_at(make_ref, peer.endpoint), FAR_S)
    peer.accept()
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            peer.send(PING * 10_000)

    with ThreadPoolExecutor(1) as threads:
        flooding = threads.submit(flood)
        try:
            assert torch.equal(client.fetch(bench.offer(server, LARGE), FAR_S).result(WAIT_S), LARGE)
            links = [link for link in client._thread._links if isinstance(link, StreamLink)]
            assert max(len(link._queued) for link in links) < 100
            assert not flooded.done()
        finally:
            done.set()
            client.close()
            flooding.exception(WAIT_S)  # the connection may end while it sends


def test_another_stream_cannot_write_what_was_delivered(bench: Any, make_ref: Any, peer: Peer, eventually: Any) -> None:
    client, other = bench.client(ClientSettings(liveness_s=WAIT_S, num_streams=2)), peer.another()
    future = client.fetch(ref_at(make_ref, peer.endpoint), FAR_S)
    peer.accept()
    request = peer.request()
    client.fetch(ref_at(make_ref, peer.endpoint), FAR_S)
    other.accept()
    other.request()
    peer.reply(request)
    fetch = client._thread._exchange._fetches.get(request.fetch_id)
    assert fetch is not None
    eventually(lambda: fetch.begun)
    message = data_message(request.fetch_id)
    wrong = message[: -LARGE.nbytes] + bytes([0xEE]) * LARGE.nbytes
    other.send(wrong[: -LARGE.nbytes // 2])
    link = client._thread._links.open(peer.endpoint, 2)
    assert isinstance(link, StreamLink)
    eventually(lambda: link._unfilled.nbytes == LARGE.nbytes // 2)
    peer.send(message)
    arrived = future.result(WAIT_S)
    assert torch.equal(arrived, LARGE)
    other.send(wrong[-LARGE.nbytes // 2 :])
    eventually(lambda: link._unfilled.nbytes < LARGE.nbytes // 2)
    assert torch.equal(arrived, LARGE)
    other.close()


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_any_number_of_streams_serves(bench: Any, num_streams: int) -> None:
    server, client = bench.server(), bench.client(ClientSettings(num_streams=num_streams))
    refs = [bench.offer(server, LARGE + number) for number in range(6)]
    arrived = [client.fetch(ref, FAR_S) for ref in refs]
    assert all(torch.equal(future.result(WAIT_S), LARGE + number) for number, future in enumerate(arrived))


def test_large_embeddings_take_turns_on_the_streams(bench: Any) -> None:
    server, client = bench.server(), bench.client(ClientSettings(num_streams=2))
    for number in range(4):
        ref = bench.offer(server, LARGE + number)
        assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), LARGE + number)
    assert sum(isinstance(link, StreamLink) for link in client._thread._links) == 2


def test_fetches_that_many_threads_begin_all_end_rightly_and_in_time(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    assert torch.equal(client.fetch(bench.offer(server, LARGE), FAR_S).result(WAIT_S), LARGE)  # the stream is there

    def some(number: int) -> bool:
        never = client.fetch(bench.announce(server, LARGE), 0.2)
        refs = [bench.offer(server, LARGE + number + part / 8) for part in range(4)]
        futures = [client.fetch(ref, FAR_S) for ref in refs]
        arrived = [torch.equal(future.result(WAIT_S), LARGE + number + part / 8) for part, future in enumerate(futures)]
        for ref in refs:
            client.release(ref)
        return all(arrived) and isinstance(never.exception(WAIT_S), DeadlineExceeded)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(some, range(16)))


def test_an_encoder_killed_or_frozen_while_a_large_fetch_waits_is_lost(bench: Any, start_encoder: Any) -> None:
    for stop in (signal.SIGKILL, signal.SIGSTOP):
        encoder, client = start_encoder("zmq"), bench.client(QUICK)
        future = client.fetch(encoder.announce(LARGE), FAR_S)
        with pytest.raises(TimeoutError):
            future.result(2.5)  # longer than it may be silent: it answers though it has nothing to say
        os.kill(encoder.process.pid, stop)
        assert isinstance(future.exception(WAIT_S), EncoderLost)
