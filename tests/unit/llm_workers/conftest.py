"""A real encoder end, a real client that counts what it is asked, a store, and the needs of an engine over them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from llm_workers.embedding_needs import EmbeddingNeeds
from llm_workers.embedding_params import EmbeddingParams
from llm_workers.embedding_store import EmbeddingStore
from transfer import (
    ArrivedFuture,
    ClientSettings,
    EmbeddingClient,
    EmbeddingRef,
    EmbeddingServer,
    ServerSettings,
    TriptychError,
    new_transfer_id,
    receive_channels,
    send_channels,
    tensor_to_buffer,
)

FINGERPRINT = "model@revision"
STORE_BYTES = 1 << 20
ARENA_BYTES = 1 << 20
WAIT_S = 30.0


class CountingClient(EmbeddingClient):
    """The real client; remembers fetches and releases by transfer id."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        super().__init__(FINGERPRINT, ClientSettings(liveness_s=1.0), receive_channels(channels))
        self.fetched: Counter[str] = Counter()
        self.released: Counter[str] = Counter()

    def fetch_in_place(
        self, ref: EmbeddingRef, timeout_s: float, allocate: Callable[[int], memoryview] | None = None
    ) -> ArrivedFuture:
        self.fetched[ref.transfer_id] += 1
        return super().fetch_in_place(ref, timeout_s, allocate)

    def release(self, ref: EmbeddingRef) -> None:
        self.released[ref.transfer_id] += 1
        super().release(ref)


class Engine:
    """What a scheduler does with the needs of its requests."""

    def __init__(self, *channels: str) -> None:
        self.senders = send_channels(channels, ARENA_BYTES)
        self.server = EmbeddingServer(FINGERPRINT, ServerSettings(lease_s=300.0), self.senders)
        self.client = CountingClient(channels)
        self.store = EmbeddingStore(STORE_BYTES)
        self.failures: dict[str, list[TriptychError]] = {}
        self.needs = EmbeddingNeeds(self.client, self.store, self)

    def report(self, request_id: str, error: TriptychError) -> None:
        self.failures.setdefault(request_id, []).append(error)

    def announce(self, tensor: torch.Tensor, key: str = "key") -> EmbeddingRef:
        transfer_id = new_transfer_id()
        num_tokens, width = tensor.shape
        self.server.announce(transfer_id, key, num_tokens, width, "float32")
        return EmbeddingRef(
            key, transfer_id, (self.server.endpoint,), num_tokens, width, "float32", tensor.nbytes, FINGERPRINT
        )

    def publish(self, ref: EmbeddingRef, tensor: torch.Tensor) -> None:
        assert self.server.publish(ref.transfer_id, tensor_to_buffer(tensor), tuple(tensor.shape), "float32")

    def start(self, request_id: str, *refs: EmbeddingRef, timeout_s: float = WAIT_S) -> None:
        params = EmbeddingParams(f"report-{request_id}", {ref.item_key: ref for ref in refs}, timeout_s)
        self.needs.start(request_id, params)

    def step_until(self, condition: Callable[[], bool]) -> None:
        """Steps of the scheduler until the condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.002)

    def load(self, key: str = "key") -> torch.Tensor:
        (stored,) = self.store.list_for_step([key])
        return stored.load(torch.device("cpu"))

    def files(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.store.name}*"))


@pytest.fixture
def engine() -> Iterator[Engine]:
    yield from _run(Engine("zmq"))


@pytest.fixture
def nearby_engine() -> Iterator[Engine]:
    """One on the encoder's host."""
    yield from _run(Engine("shm", "zmq"))


@pytest.fixture
def device_engine() -> Iterator[Engine]:
    """One on the encoder's host that would rather have embeddings from device to device."""
    yield from _run(Engine("hccl", "shm"))


def _run(made: Engine) -> Iterator[Engine]:
    yield made
    made.needs.close()
    made.client.close()
    made.store.close()
    made.store.close()
    made.server.check_integrity()
    made.server.close()
    assert made.files() == []
