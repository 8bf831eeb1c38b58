"""Real servers, clients and encoder processes, all closed and checked for leftovers at the end of each test."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from transfer import (
    ClientSettings,
    EmbeddingClient,
    EmbeddingRef,
    EmbeddingServer,
    ServerSettings,
    dtype_name,
    new_transfer_id,
    receive_channels,
    send_channels,
    tensor_to_buffer,
)

FINGERPRINT = "model@revision"
_PROCESS = Path(__file__).with_name("encoder_process.py")


def make_ref(transfer_id: str, tensor: torch.Tensor, *endpoints: str) -> EmbeddingRef:
    num_tokens, width = tensor.shape
    return EmbeddingRef(
        item_key="key",
        transfer_id=transfer_id,
        endpoints=endpoints,
        num_tokens=num_tokens,
        width=width,
        dtype=dtype_name(tensor.dtype),
        expected_bytes=tensor.nbytes,
        fingerprint=FINGERPRINT,
    )


@dataclass
class Bench:
    """What tests say to a server and client in this process."""

    servers: list[EmbeddingServer] = field(default_factory=list)
    clients: list[EmbeddingClient] = field(default_factory=list)

    def server(
        self,
        settings: ServerSettings | None = None,
        fingerprint: str = FINGERPRINT,
        channels: Sequence[str] = ("zmq",),
        arena_bytes: int = 1024 * 1024,
    ) -> EmbeddingServer:
        self.servers.append(EmbeddingServer(fingerprint, settings, send_channels(channels, arena_bytes)))
        return self.servers[-1]

    def client(
        self,
        settings: ClientSettings | None = None,
        fingerprint: str = FINGERPRINT,
        channels: Sequence[str] = ("zmq",),
    ) -> EmbeddingClient:
        self.clients.append(EmbeddingClient(fingerprint, settings, receive_channels(channels)))
        return self.clients[-1]

    @staticmethod
    def announce(server: EmbeddingServer, tensor: torch.Tensor, lease_s: float | None = None) -> EmbeddingRef:
        ref = make_ref(new_transfer_id(), tensor, server.endpoint)
        server.announce(ref.transfer_id, ref.item_key, ref.num_tokens, ref.width, ref.dtype, lease_s)
        return ref

    @staticmethod
    def publish(server: EmbeddingServer, ref: EmbeddingRef, tensor: torch.Tensor) -> bool:
        return server.publish(ref.transfer_id, tensor_to_buffer(tensor), tuple(tensor.shape), ref.dtype)

    def offer(self, server: EmbeddingServer, tensor: torch.Tensor) -> EmbeddingRef:
        ref = self.announce(server, tensor)
        assert self.publish(server, ref, tensor)
        return ref


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for a condition that another thread brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for client in made.clients:
        client.close()
        assert client.num_pending == 0
    for server in made.servers:
        server.check_integrity()
        server.close()
        stats = server.stats()
        assert (stats.num_leases, stats.num_ready, stats.num_parked, stats.bytes_held) == (0, 0, 0, 0)


@pytest.fixture(name="make_ref")
def make_ref_fixture() -> Callable[..., EmbeddingRef]:
    return make_ref


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    return eventually


@dataclass
class EncoderProcess:
    """An encoder in a process of its own, that can be told, frozen and killed."""

    process: "subprocess.Popen[str]"
    endpoint: str = ""

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        assert self.read() == "ok"

    def announce(self, tensor: torch.Tensor) -> EmbeddingRef:
        ref = make_ref(new_transfer_id(), tensor, self.endpoint)
        self.tell(f"announce {ref.transfer_id} {ref.num_tokens} {ref.width} {ref.dtype}")
        return ref

    def publish(self, ref: EmbeddingRef, seed: int) -> None:
        self.tell(f"publish {ref.transfer_id} {ref.num_tokens} {ref.width} {ref.dtype} {seed}")


@pytest.fixture
def start_encoder() -> Iterator[Callable[..., EncoderProcess]]:
    started: list[subprocess.Popen[str]] = []

    def start(*channels: str) -> EncoderProcess:
        command = [sys.executable, str(_PROCESS), FINGERPRINT, *(channels or ("zmq",))]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        encoder = EncoderProcess(process)
        encoder.endpoint = encoder.read()
        return encoder

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=30)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
