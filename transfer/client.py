"""The prefill worker's embedding client: fetches and releases from any thread, answered by one thread of its own."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast

import torch

from transfer.buffer_pool import BufferPool
from transfer.channels.base import ReceiveChannel
from transfer.channels.shm_channel import ShmReceiveChannel
from transfer.channels.zmq_channel import ZmqReceiveChannel
from transfer.client_inbox import SendCommand
from transfer.client_thread import ClientThread
from transfer.curve import CurveKey
from transfer.errors import Closed, DeadlineExceeded, Incompatible, LimitExceeded, TriptychError
from transfer.link_table import LinkTable
from transfer.messages import EmbeddingRef, Release, Renew
from transfer.nearby import Allocate, Arrived, ArrivedFuture, Nearby
from transfer.settled import SettledFuture

_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How an embedding client is to run.

    `liveness_s`: how long an encoder may be silent before it counts as lost. `max_embedding_bytes`: of one fetch.
    `idle_buffer_bytes`: memory kept for the next embeddings when tensors are dropped.
    `num_streams`: connections to each encoder that large embeddings share.
    `curve`: talk only to encoders with this key, encrypted.
    """

    liveness_s: float = 2.0
    max_embedding_bytes: int = 4 * 1024**3
    idle_buffer_bytes: int = 256 * 1024**2
    num_streams: int = 1
    curve: CurveKey | None = None

    def __post_init__(self) -> None:
        if self.liveness_s <= 0 or min(self.max_embedding_bytes, self.num_streams) < 1 or self.idle_buffer_bytes < 0:
            raise ValueError(
                "liveness_s, max_embedding_bytes and num_streams must be positive, idle_buffer_bytes not negative"
            )


class EmbeddingClient:
    """Fetches embeddings from any number of encoders. All methods are thread-safe; `close` is idempotent.

    A fetch ends in exactly one of: the embedding; EncoderLost (within about `liveness_s` of the encoder's death);
    EmbeddingNotFound, EmbeddingExpired, EmbeddingCorrupt, Busy, OutOfMemory; Incompatible, LimitExceeded, or the
    encoder's own terminal error; DeadlineExceeded; ProtocolError; Closed; TriptychError itself, for a defect on
    either side.
    """

    def __init__(
        self, fingerprint: str, settings: ClientSettings | None = None, channels: Sequence[ReceiveChannel] = ()
    ) -> None:
        """Start with no connections. `fingerprint` is that of this worker's own model.

        `channels` (see `transfer.channels.receive_channels`) are offered in order and closed with the client; without
        any, zmq alone is offered.
        """
        self._fingerprint = fingerprint
        self._settings = settings or ClientSettings()
        self._buffers = BufferPool(self._settings.idle_buffer_bytes)
        channels = channels or (ZmqReceiveChannel(),)
        # What is on this host is not asked for over the network, unless another channel was named before.
        first = channels[0]
        self._nearby = Nearby(first.reader) if isinstance(first, ShmReceiveChannel) else None
        num_streams = 0 if any(channel.per_connection for channel in channels) else self._settings.num_streams
        links = LinkTable(self._settings.liveness_s, self._settings.curve, num_streams)
        self._thread = ClientThread(fingerprint, channels, links, self._nearby)
        self._closed = False
        self._thread.start()

    def fetch(self, ref: EmbeddingRef, timeout_s: float, allocate: Allocate | None = None) -> "Future[torch.Tensor]":
        """Fetch one embedding into a new CPU tensor [num_tokens, width], waiting up to `timeout_s` for it to exist.

        `allocate` gives the tensor's memory once the embedding is there; it is called once at most, in this thread or
        the client's. Errors arrive through the future. The lease goes on: call `release` once the tensor is where it
        is needed. Callbacks of the future run in the client's thread and must be short. Cancelling the future drops
        the result.

        Raises:
            ValueError: `timeout_s` is not finite.
        """
        return cast("Future[torch.Tensor]", self._fetch(ref, timeout_s, allocate, in_place=False))

    def fetch_in_place(self, ref: EmbeddingRef, timeout_s: float, allocate: Allocate | None = None) -> ArrivedFuture:
        """As `fetch`, but an embedding on this host stays where its encoder put it: the result is then a HeldBlock.

        The memory stays as it is until the block is closed, also when the lease ends or the encoder dies.
        """
        return self._fetch(ref, timeout_s, allocate, in_place=True)

    def _fetch(self, ref: EmbeddingRef, timeout_s: float, allocate: Allocate | None, in_place: bool) -> ArrivedFuture:
        if not math.isfinite(timeout_s):
            raise ValueError(f"timeout_s must be finite, not {timeout_s}")
        allocate = allocate or self._buffers.allocate
        outcome: Arrived | TriptychError | None
        if ref.fingerprint != self._fingerprint:
            outcome = Incompatible("the embedding was made for another model, revision, dtype or layout")
        elif ref.expected_bytes > self._settings.max_embedding_bytes:
            limit = self._settings.max_embedding_bytes
            outcome = LimitExceeded(f"embedding of {ref.expected_bytes} bytes is over the limit of {limit}")
        elif timeout_s <= 0:
            outcome = DeadlineExceeded("no time left to fetch")
        elif self._closed:
            outcome = Closed("the embedding client is closed")
        else:
            outcome = None if self._nearby is None else self._nearby.get(ref, allocate, in_place)
        if outcome is not None:
            return SettledFuture(outcome)
        future: ArrivedFuture = Future()
        if not self._thread.fetch(ref, time.monotonic() + timeout_s, future, allocate, in_place):
            return SettledFuture(Closed("the embedding client is closed"))
        return future

    @property
    def is_running(self) -> bool:
        """Whether fetches can be begun; False once closed, or when the client's thread failed."""
        return self._thread.is_running

    def release(self, ref: EmbeddingRef) -> None:
        """Tell the encoder that this transfer is done with. Fire and forget, idempotent; the lease's end is the net."""
        self._thread.send(SendCommand(Release(ref.transfer_id), ref.endpoints))

    def renew(self, ref: EmbeddingRef) -> None:
        """Ask the encoder to start the lease's time again, while a fetch must wait. Fire and forget."""
        self._thread.send(SendCommand(Renew(ref.transfer_id), ref.endpoints))

    @property
    def num_pending(self) -> int:
        """Fetches that have not ended."""
        return self._thread.num_pending

    def close(self) -> None:
        """End every pending fetch with Closed, let queued releases leave, stop the thread."""
        self._closed = True
        self._thread.stop(_CLOSE_TIMEOUT_S)
