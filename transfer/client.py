"""The prefill worker's embedding client: fetches and releases from any thread, answered by one thread of its own."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from transfer.channels.base import ReceiveChannel
from transfer.channels.zmq_channel import ZmqReceiveChannel
from transfer.client_thread import ClientThread
from transfer.curve import CurveKey
from transfer.errors import Closed, DeadlineExceeded, Incompatible, LimitExceeded
from transfer.messages import EmbeddingRef, Release, Renew
from transfer.reception import Allocate
from transfer.tensors import empty_buffer

_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How an embedding client is to run.

    `liveness_s`: how long an encoder may be silent before it counts as lost. `max_embedding_bytes`: of one fetch.
    `curve`: talk only to encoders with this key, encrypted.
    """

    liveness_s: float = 2.0
    max_embedding_bytes: int = 4 * 1024**3
    curve: CurveKey | None = None

    def __post_init__(self) -> None:
        if self.liveness_s <= 0 or self.max_embedding_bytes < 1:
            raise ValueError("liveness_s and max_embedding_bytes must be positive")


class EmbeddingClient:
    """Fetches embeddings from any number of encoders. All methods are thread-safe; `close` is idempotent.

    A fetch ends in exactly one of: the tensor; EncoderLost (within about `liveness_s` of the encoder's death);
    EmbeddingNotFound, EmbeddingExpired, EmbeddingCorrupt, Busy; Incompatible, LimitExceeded, or the encoder's own
    terminal error; DeadlineExceeded; ProtocolError; Closed.
    """

    def __init__(
        self, fingerprint: str, settings: ClientSettings | None = None, channels: Sequence[ReceiveChannel] = ()
    ) -> None:
        """Start with no connections. `fingerprint` is that of this worker's own model (`keys.fingerprint`).

        `channels` (see `transfer.channels.receive_channels`) are offered in order and closed with the client; without
        any, zmq alone is offered.
        """
        self._fingerprint = fingerprint
        self._settings = settings or ClientSettings()
        self._thread = ClientThread(
            fingerprint, channels or (ZmqReceiveChannel(),), self._settings.liveness_s, self._settings.curve
        )
        self._thread.start()

    def fetch(self, ref: EmbeddingRef, timeout_s: float, allocate: Allocate = empty_buffer) -> "Future[torch.Tensor]":
        """Fetch one embedding into a new CPU tensor [num_tokens, width], waiting up to `timeout_s` for it to exist.

        `allocate` gives the tensor's memory once the embedding is there; it is called in the client's thread.
        Errors arrive through the future. The lease goes on: call `release` once the tensor is where it is needed.
        Callbacks of the future run in the client's thread and must be short. Cancelling the future drops the result.
        """
        future: Future[torch.Tensor] = Future()
        if ref.fingerprint != self._fingerprint:
            future.set_exception(Incompatible("the embedding was made for another model, revision, dtype or layout"))
        elif ref.expected_bytes > self._settings.max_embedding_bytes:
            limit = self._settings.max_embedding_bytes
            future.set_exception(LimitExceeded(f"embedding of {ref.expected_bytes} bytes is over the limit of {limit}"))
        elif timeout_s <= 0:
            future.set_exception(DeadlineExceeded("no time left to fetch"))
        elif not self._thread.submit_fetch(ref, time.monotonic() + timeout_s, future, allocate):
            future.set_exception(Closed("the embedding client is closed"))
        return future

    def release(self, ref: EmbeddingRef) -> None:
        """Tell the encoder that this transfer is done with. Fire and forget, idempotent; the lease's end is the net."""
        self._thread.submit(Release(ref.transfer_id), ref.endpoints)

    def renew(self, ref: EmbeddingRef) -> None:
        """Ask the encoder to start the lease's time again, while a fetch must wait. Fire and forget."""
        self._thread.submit(Renew(ref.transfer_id), ref.endpoints)

    @property
    def num_pending(self) -> int:
        """Fetches that have not ended."""
        return self._thread.num_pending

    def close(self) -> None:
        """End every pending fetch with Closed, let queued releases leave, stop the thread."""
        self._thread.stop(_CLOSE_TIMEOUT_S)
