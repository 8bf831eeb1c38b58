"""A TCP socket with nothing on top."""

from __future__ import annotations

import socket
import threading
from collections import deque
from pathlib import Path
from typing import Any

import torch

from benchmarks.transfer_peers.base import NUM_IN_FLIGHT, Consumer, Producer
from transfer import tensor_to_buffer


class SocketProducer(Producer):
    """Sends all bytes for every byte that it is sent."""

    def __init__(self, tensor: torch.Tensor, folder: Path) -> None:
        self._buffer = tensor_to_buffer(tensor)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def publish(self) -> None:
        """Nothing: it is always there."""

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while peer.recv(1):
            peer.sendall(self._buffer)


class SocketConsumer(Consumer):
    """Reads into memory that is already there."""

    has_handover = False
    streams = True

    def __init__(self, address: Any, num_bytes: int) -> None:
        super().__init__(address, num_bytes)
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._memories = deque(tensor_to_buffer(torch.zeros(num_bytes // 4)) for _ in range(NUM_IN_FLIGHT))

    def expect(self, item: Any) -> None:
        self._socket.send(b"x")

    def collect(self) -> memoryview:
        memory = self._memories[0]
        self._memories.rotate(-1)
        received = 0
        while received < self.num_bytes:
            received += self._socket.recv_into(memory[received:])
        return memory

    def close(self) -> None:
        self._socket.close()
