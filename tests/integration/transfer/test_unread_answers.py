"""Guards: memory without bound for a peer that asks and never reads, and a slow reader taken for one."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from transfer import EmbeddingServer, FetchRequest, Release, encode
from transfer.zmtp import GREETING, READY, frame

FINGERPRINT = "model@revision"
TENSOR = torch.arange(24, dtype=torch.float32).view(6, 4)
WAIT_S = 30.0
MIB = 2**20


class Peer:
    """Speaks the protocol of an embedding client over a plain socket, and reads when it is told to."""

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(WAIT_S)
        self._socket.connect((host, int(port)))
        self._socket.sendall(GREETING)
        num_left = len(GREETING)
        while num_left:
            piece = self._socket.recv(num_left)
            assert piece, "the server went away"
            num_left -= len(piece)
        self._socket.sendall(READY)

    def ask(self, transfer_id: str, times: int = 1) -> None:
        request = FetchRequest(1, transfer_id, "key", FINGERPRINT, "elsewhere", ("zmq",), WAIT_S)
        self._socket.sendall(frame(encode(request)) * times)

    def release(self, transfer_id: str) -> None:
        self._socket.sendall(frame(encode(Release(transfer_id))))

    def read_until_silent(self) -> int:
        """How many bytes came."""
        num_bytes = 0
        self._socket.settimeout(0.5)
        try:
            while piece := self._socket.recv(MIB):
                num_bytes += len(piece)
        except TimeoutError:
            pass
        self._socket.settimeout(WAIT_S)
        return num_bytes

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def connect() -> Iterator[Callable[[str], Peer]]:
    peers: list[Peer] = []

    def open_peer(endpoint: str) -> Peer:
        peers.append(Peer(endpoint))
        return peers[-1]

    yield open_peer
    for peer in peers:
        peer.close()


def ask_until_dropped(server: EmbeddingServer, peer: Peer) -> None:
    deadline = time.monotonic() + WAIT_S
    while not server.stats().num_unreachable:
        assert time.monotonic() < deadline, "every answer was queued"
        peer.ask("never announced" * 16, times=500)


def test_answers_to_a_peer_that_never_reads_are_dropped_and_others_are_served(
    bench: Any, connect: Callable[[str], Peer], eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = bench.server(), bench.client()
    peer = connect(server.endpoint)
    ref = bench.announce(server, TENSOR)
    peer.ask(ref.transfer_id)
    eventually(lambda: server.stats().num_parked == 1)
    ask_until_dropped(server, peer)
    assert any("does not read" in record.message for record in caplog.records)

    # What it waits for is dropped as well, and nobody else loses anything by it.
    before = server.stats().num_unreachable
    bench.publish(server, ref, TENSOR)
    eventually(lambda: server.stats().num_parked == 0)
    assert server.stats().num_unreachable > before
    assert (server.stats().num_fetched, server.stats().num_ready) == (0, 1)
    assert torch.equal(client.fetch(ref, WAIT_S).result(WAIT_S), TENSOR)
    assert server.stats().num_fetched == 1

    # Once it reads, it is answered again, and its requests still count.
    assert peer.read_until_silent()
    peer.ask(ref.transfer_id)
    assert peer.read_until_silent() > TENSOR.nbytes
    assert server.stats().num_fetched == 2
    peer.release(ref.transfer_id)
    eventually(lambda: server.stats().num_leases == 0)


def test_many_large_embeddings_wait_for_a_slow_reader(
    bench: Any, connect: Callable[[str], Peer], eventually: Any
) -> None:
    server = bench.server()
    tensor = torch.zeros(64 * MIB // 4096, 1024)
    ref = bench.offer(server, tensor)
    peer = connect(server.endpoint)
    peer.ask(ref.transfer_id, times=64)
    eventually(lambda: server.stats().num_fetched + server.stats().num_unreachable == 64)
    assert server.stats().num_unreachable == 0


def test_an_answer_that_is_not_delivered_whole_does_not_count_as_fetched(
    bench: Any, connect: Callable[[str], Peer], eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer.channels.zmq_channel.CHUNK_BYTES", 128)
    server = bench.server()
    tensor = torch.zeros(4 * MIB // 4096, 1024)  # in 32,768 chunks, far more than are queued or fit in buffers
    ref = bench.offer(server, tensor)
    connect(server.endpoint).ask(ref.transfer_id)
    eventually(lambda: server.stats().num_unreachable == 1)
    assert (server.stats().num_fetched, server.stats().num_refused) == (0, 0)
