"""The encoder's embedding server: announced, published, fetched, released, on a control thread of its own."""

import ipaddress
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from transfer.channels.base import Payload, SendChannel
from transfer.channels.zmq_channel import ZmqSendChannel
from transfer.curve import CurveKey
from transfer.doorbell import Ringer
from transfer.dtypes import DTYPE_BYTES
from transfer.errors import Closed, EncoderLost, TriptychError
from transfer.leases import LeaseTable
from transfer.server_thread import ServerState, ServerThread
from transfer.tensors import HostEmbedding, copy_tensor, dtype_name

_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ServerStats:
    """One moment of a server: what it holds now, and what it has counted since it started."""

    num_leases: int
    num_ready: int
    num_parked: int
    bytes_promised: int
    bytes_held: int
    num_fetched: int
    num_refused: int
    num_released: int
    num_expired: int
    num_malformed: int
    num_unreachable: int


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How an embedding server is to run.

    `lease_s`: how long an embedding waits to be made, unless announced otherwise, and again to be fetched.
    `max_bytes`: of embeddings that are promised or held, beyond which new holders are refused.
    `max_park_s`: longest wait of a fetch.
    `checksum`: send a CRC-32 with each embedding. `curve`: admit only peers with this key, encrypted.
    """

    bind_host: str = "127.0.0.1"
    lease_s: float = 60.0
    max_leases: int = 16_384
    max_bytes: int | None = None
    max_parked: int = 4096
    max_park_s: float = 300.0
    checksum: bool = False
    curve: CurveKey | None = None

    def __post_init__(self) -> None:
        address = ipaddress.ip_address(self.bind_host)
        if address.is_unspecified:
            raise ValueError(f"bind_host {self.bind_host} is not an address that others can reach")
        if min(self.lease_s, self.max_park_s) <= 0 or min(self.max_leases, self.max_parked) < 1:
            raise ValueError("lease_s, max_park_s, max_leases and max_parked must be positive")


class EmbeddingServer:
    """Holds the embeddings of one encoder rank under leases and answers fetches for them.

    Life of a transfer: `announce` before its ticket leaves the encoder; then `publish` or `fail`, once; the fetcher's
    Release, or `release`, or the end of the lease frees it. Fetches that come before `publish` wait for it.
    All methods are thread-safe and return without waiting for the network. `close` is idempotent.
    """

    def __init__(
        self, fingerprint: str, settings: ServerSettings | None = None, channels: Sequence[SendChannel] = ()
    ) -> None:
        """Bind port 0 of the settings' host and start.

        `channels` (see `transfer.channels.send_channels`) are closed with the server; without any, zmq alone serves.
        Raises zmq.ZMQError when the address cannot be bound.
        """
        self._settings = settings or ServerSettings()
        self._channels: dict[str, SendChannel] = {channel.name: channel for channel in channels or (ZmqSendChannel(),)}
        self._state = ServerState(
            leases=LeaseTable(
                clock=time.monotonic, max_leases=self._settings.max_leases, max_bytes=self._settings.max_bytes
            ),
            fingerprint=fingerprint,
            channels=self._channels,
            max_park_s=self._settings.max_park_s,
        )
        self._state.leases.on_end = self._state.forget
        self._closed = False
        self._ringer = Ringer()
        self._thread = ServerThread(
            self._state, self._settings.bind_host, self._settings.max_parked, self._settings.curve
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """The address that was bound, for instance tcp://127.0.0.1:40123."""
        return self._thread.endpoint

    def announce(
        self,
        transfer_id: str,
        item_key: str,
        num_tokens: int,
        width: int,
        dtype: str,
        lease_s: float | None = None,
        wait_s: float | None = None,
        holder: str = "",
    ) -> None:
        """Promise the embedding [num_tokens, width].

        `lease_s` replaces the settings' own for this transfer; `wait_s` is how long the lease lasts while the
        embedding is not ready, if not `lease_s`. `holder` names who it is promised to: at the limit of bytes only
        those that hold something already are promised more.

        Raises ValueError for a reused id or a shape or dtype that cannot be, Busy at a limit, Closed.
        """
        if num_tokens < 1 or width < 1 or dtype not in DTYPE_BYTES:
            raise ValueError(f"cannot announce [{num_tokens}, {width}] of {dtype!r}")
        duration_s = self._settings.lease_s if lease_s is None else lease_s
        if duration_s <= 0 or (wait_s is not None and wait_s <= 0):
            raise ValueError(f"lease_s and wait_s must be positive, got {duration_s} and {wait_s}")
        with self._state.lock:
            if self._closed:
                raise Closed("the embedding server is closed")
            leases = self._state.leases
            lease = leases.announce(transfer_id, item_key, num_tokens, width, dtype, duration_s, wait_s, holder)
            self._thread.wake_by(lease.deadline)

    def place(self, tensor: torch.Tensor) -> HostEmbedding | None:
        """A copy of [num_tokens, width] where `publish` need not copy it: for each of its transfers, and for a cache.

        `tensor` may be on any device. None when no channel has room, at the moment or at all.
        """
        for channel in self._channels.values():
            memory = channel.allocate(tensor.nbytes)
            if memory is not None:
                copy_tensor(tensor, memory)
                return HostEmbedding(memory, (tensor.shape[0], tensor.shape[1]), dtype_name(tensor.dtype))
        return None

    def publish(
        self, transfer_id: str, payload: memoryview, shape: tuple[int, ...], dtype: str, row_start: int = 0
    ) -> bool:
        """Give the rows [row_start, row_start + shape[0]) of an announced embedding, as contiguous bytes.

        The memory is sent without a copy, or copied once into memory that can be shared, if `place` did not do so:
        from now on it belongs to the server and must never be written again.
        Returns False, keeping nothing, when the lease has ended. Raises ValueError for an unknown or already
        published transfer, or bytes, shape or dtype other than announced.
        """
        with self._state.lock:
            lease = self._state.leases.get(transfer_id)
        if lease is None:
            with self._state.lock:
                known = self._closed or self._state.leases.state_of(transfer_id) is not None
            if not known:
                raise ValueError(f"transfer {transfer_id} was never announced")
            return False
        if len(shape) != 2 or shape[1] != lease.width or dtype != lease.dtype:
            raise ValueError(f"announced [*, {lease.width}] of {lease.dtype}, got {list(shape)} of {dtype}")
        if not 0 <= row_start <= row_start + shape[0] <= lease.num_tokens:
            raise ValueError(f"rows [{row_start}, {row_start + shape[0]}) are not within {lease.num_tokens} tokens")
        row_bytes = lease.width * DTYPE_BYTES[dtype]
        flat = memoryview(payload).cast("B")
        if flat.nbytes != shape[0] * row_bytes:
            raise ValueError(f"{flat.nbytes} bytes are not {list(shape)} of {dtype}")
        checksum = zlib.crc32(flat) if self._settings.checksum else None
        held = Payload(flat, row_start, shape[0], row_bytes, checksum)
        for channel in self._channels.values():
            held = channel.store(held)
        with self._state.lock:
            accepted = self._state.leases.fulfil(transfer_id, held)
            if accepted:
                for channel in self._channels.values():
                    channel.advertise(transfer_id, held)
            bells = self._state.waiting.pop(transfer_id, None)
        if bells is not None:
            for bell in bells:
                self._ringer.ring(bell)
            self._thread.changed(transfer_id)
        return accepted

    def fail(self, transfer_id: str, error: TriptychError) -> bool:
        """Tell every fetch, waiting or to come, why there will be no embedding. False when the lease has ended.

        Raises ValueError for an unknown or already published transfer.
        """
        with self._state.lock:
            if self._closed:
                return False
            accepted = self._state.leases.fail(transfer_id, error)
        self._thread.changed(transfer_id)
        return accepted

    def release(self, transfer_id: str) -> None:
        """End the lease, whatever its state; idempotent. Waiting fetches are told that it expired."""
        with self._state.lock:
            self._state.leases.release(transfer_id)
        self._thread.changed(transfer_id)

    def renew(self, transfer_id: str) -> None:
        """Start the lease's time again; nothing when it has ended."""
        with self._state.lock:
            self._state.leases.renew(transfer_id)

    def is_live(self, transfer_id: str) -> bool:
        """Whether the lease has not ended: work for it is not wasted."""
        with self._state.lock:
            return self._state.leases.get(transfer_id) is not None

    def stats(self) -> ServerStats:
        """What the server holds and has counted."""
        with self._state.lock, self._state.counting:
            leases, counters = self._state.leases, self._state.counters
            return ServerStats(
                num_leases=leases.num_leases,
                num_ready=leases.num_ready,
                num_parked=counters.num_parked,
                bytes_promised=leases.bytes_promised,
                bytes_held=leases.bytes_held,
                num_fetched=counters.num_fetched,
                num_refused=counters.num_refused,
                num_released=leases.num_released,
                num_expired=leases.num_expired,
                num_malformed=counters.num_malformed,
                num_unreachable=counters.num_unreachable,
            )

    def check_health(self) -> None:
        """Raises EncoderLost when the control thread has died."""
        if not self._closed and not self._thread.is_alive:
            raise EncoderLost("the embedding server's thread has died: no fetch is answered any more")

    def check_integrity(self) -> None:
        """Assert that the server's books agree; for tests and idle moments."""
        with self._state.lock:
            self._state.leases.check_integrity()

    def close(self) -> None:
        """Answer what waits with EncoderLost, free every lease, stop the thread."""
        with self._state.lock:
            if self._closed:
                return
            self._closed = True
        self._thread.stop(_CLOSE_TIMEOUT_S)
        with self._state.lock:
            self._state.leases.clear()
        for channel in self._channels.values():
            channel.close()
        self._ringer.close()
