"""Our embedding server and client, with one channel."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.transfer_peers.base import NUM_IN_FLIGHT, WAIT_S, Consumer, Producer, touch
from transfer import (
    ClientSettings,
    EmbeddingClient,
    EmbeddingRef,
    EmbeddingServer,
    HeldBlock,
    new_transfer_id,
    receive_channels,
    send_channels,
    tensor_to_buffer,
)

FINGERPRINT = "benchmark"
_HEADROOM = 8


class ServerProducer(Producer):
    """Our embedding server with one channel."""

    channel: ClassVar[str]

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._tensor = tensor
        arena_bytes = max(_HEADROOM * tensor.nbytes, 2**20)
        self._server = EmbeddingServer(FINGERPRINT, None, send_channels([self.channel], arena_bytes))
        self.address = self.channel
        self._transfer_id = ""

    def prepare(self) -> EmbeddingRef:
        self._wait_for_releases()
        self._transfer_id = new_transfer_id()
        num_tokens, width = self._tensor.shape
        self._server.announce(self._transfer_id, "key", num_tokens, width, "float32")
        return EmbeddingRef(
            "key",
            self._transfer_id,
            (self._server.endpoint,),
            num_tokens,
            width,
            "float32",
            self._tensor.nbytes,
            FINGERPRINT,
        )

    def publish(self) -> None:
        shape = (self._tensor.shape[0], self._tensor.shape[1])
        assert self._server.publish(self._transfer_id, tensor_to_buffer(self._tensor), shape, "float32")

    def close(self) -> None:
        self._server.close()

    def _wait_for_releases(self) -> None:
        """As with the other peers, the one before is given back before the next begins; the very first one is kept."""
        deadline = time.monotonic() + WAIT_S
        while self._server.stats().num_leases > 1:
            if time.monotonic() > deadline:
                raise TimeoutError("transfers that were fetched are not released")
            time.sleep(1e-4)


class ZmqProducer(ServerProducer):
    channel = "zmq"


class ShmProducer(ServerProducer):
    channel = "shm"


class HeldProducer(ShmProducer):
    """As an encoder does it: its output goes into the arena, and nothing else is copied."""

    def publish(self) -> None:
        placed = self._server.place(self._tensor)
        assert placed is not None
        assert self._server.publish(self._transfer_id, placed.memory, placed.shape, placed.dtype)


class ClientConsumer(Consumer):
    """Our embedding client, into memory that is already there as it is for the peers."""

    parks = True
    streams = True

    def __init__(self, address: str, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._client = _client(address)
        self._idle = deque(tensor_to_buffer(torch.zeros(num_bytes // 4)) for _ in range(NUM_IN_FLIGHT))
        self._expected: deque[tuple[Future[torch.Tensor], memoryview]] = deque()

    def expect(self, item: EmbeddingRef) -> None:
        memory = self._idle.popleft()
        self._expected.append((self._client.fetch(item, WAIT_S, lambda num_bytes: memory), memory))

    def collect(self) -> memoryview:
        future, memory = self._expected.popleft()
        self._idle.append(memory)
        future.result(WAIT_S)
        return memory

    def done(self, item: EmbeddingRef) -> None:
        self._client.release(item)

    def close(self) -> None:
        self._client.close()


class HeldConsumer(Consumer):
    """As an engine does it: the embedding is held where its encoder put it, mapped into this process."""

    parks = True

    def __init__(self, address: str, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._client = _client(address)
        self._future: Future[torch.Tensor | HeldBlock] = Future()
        self._held: HeldBlock | None = None

    def expect(self, item: EmbeddingRef) -> None:
        self._future = self._client.fetch_in_place(item, WAIT_S)

    def collect(self) -> memoryview:
        held = self._future.result(WAIT_S)
        assert isinstance(held, HeldBlock)
        self._held = held
        touch(held.memory)  # as for the file of `ec_example`
        return held.memory

    def done(self, item: EmbeddingRef) -> None:
        if self._held is not None:
            self._held.close()
        self._client.release(item)

    def close(self) -> None:
        self._client.close()


def _client(channel: str) -> EmbeddingClient:
    # The producer is stopped while others have their turn, which is no reason to think it dead.
    return EmbeddingClient(FINGERPRINT, ClientSettings(liveness_s=WAIT_S), receive_channels([channel]))


ZmqConsumer = ShmConsumer = ClientConsumer
