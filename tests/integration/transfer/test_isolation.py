"""What goes wrong with one fetch or one encoder ends that one alone, and nothing of it stays behind."""

import time
from concurrent.futures import Future
from typing import Any

import msgpack
import pytest
import torch
import zmq

from transfer import PROTOCOL_VERSION, EmbeddingCorrupt, Incompatible, ServerSettings, TriptychError, receive_channels
from transfer.client_inbox import FetchCommand
from transfer.exchange import Exchange
from transfer.link_table import LinkTable
from transfer.nearby import ArrivedFuture
from transfer.tensors import empty_buffer

TENSOR = torch.arange(4096, dtype=torch.float32).view(64, 64)
WAIT_S = 60.0


@pytest.mark.parametrize("channel", ["zmq", "shm"])
def test_memory_that_cannot_be_had_for_whatever_reason_ends_one_fetch(bench: Any, channel: str) -> None:
    server, client = bench.server(channels=[channel]), bench.client(channels=[channel])

    def fail(num_bytes: int) -> memoryview:
        raise RuntimeError(f"no {num_bytes} bytes")

    error = client.fetch(bench.offer(server, TENSOR), WAIT_S, fail).exception(WAIT_S)
    assert type(error) is TriptychError
    assert "no 16384 bytes" in str(error)
    assert torch.equal(client.fetch(bench.offer(server, TENSOR), WAIT_S).result(WAIT_S), TENSOR)
    assert client.is_running
    client.close()
    assert not client.is_running


def test_a_wait_has_an_end(bench: Any) -> None:
    server, client = bench.server(), bench.client()
    ref = bench.offer(server, TENSOR)
    for timeout_s in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="finite"):
            client.fetch(ref, timeout_s)
    assert client.num_pending == 0


def test_an_encoder_of_another_version_is_dropped_whatever_is_known_of_its_connection(
    make_ref: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as newer:
        newer.linger = 0
        endpoint = f"tcp://127.0.0.1:{newer.bind_to_random_port('tcp://127.0.0.1')}"
        links, ends = LinkTable(WAIT_S, None, num_streams=1), []
        exchange = Exchange("fingerprint", receive_channels(["zmq"]), links, None, "", lambda: ends.append(1))
        future: ArrivedFuture = Future()
        deadline = time.monotonic() + WAIT_S
        ref = make_ref("a" * 32, TENSOR, endpoint)
        exchange.begin(FetchCommand(ref, 0, deadline, future, empty_buffer, in_place=False))
        identity, _ = newer.recv_multipart()
        newer.send_multipart([identity, msgpack.packb([PROTOCOL_VERSION + 1, "FetchReply", {}])])
        while len(ready := links.poll(0.1)) < 2:  # its answer, and what became of the connection
            assert time.monotonic() < deadline
        exchange.serve_links(ready)
        assert isinstance(future.exception(0), Incompatible)
        assert (len(list(links)), ends, caplog.messages) == (0, [1], [])
        exchange.close([])


def test_a_block_that_was_held_for_a_damaged_embedding_is_given_back(bench: Any, eventually: Any) -> None:
    server, client = bench.server(ServerSettings(checksum=True), channels=["shm"]), bench.client(channels=["shm"])
    (channel,) = server._channels.values()
    ref, whole = bench.announce(server, TENSOR), channel.num_free_bytes
    assert bench.publish(server, ref, TENSOR)
    server._state.leases.get(ref.transfer_id).payload.buffer[5] ^= 0xFF
    error = client.fetch_in_place(ref, WAIT_S).exception(WAIT_S)
    assert isinstance(error, EmbeddingCorrupt)
    client.release(ref)
    eventually(lambda: channel.num_free_bytes == whole)
