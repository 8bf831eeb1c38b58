"""The control thread of an embedding server: one ROUTER socket, parked fetches, and nothing that computes."""

import errno
import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import zmq

from transfer.channels.base import Payload, SendChannel
from transfer.channels.zmq_channel import SMALL_BYTES
from transfer.codec import Message, decode, encode
from transfer.curve import CurveKey, secure_server
from transfer.errors import (
    Busy,
    DeadlineExceeded,
    EmbeddingExpired,
    EmbeddingNotFound,
    EncoderLost,
    Incompatible,
    ProtocolError,
    TriptychError,
    VersionMismatch,
)
from transfer.keys import host_id
from transfer.leases import Lease, LeaseState, LeaseTable
from transfer.messages import Chunk, FetchReply, FetchRequest, Release, Renew, Status
from transfer.parking import Parked, ParkingLot
from transfer.rate_limit import LimitedLog
from transfer.replies import delivery, failure, refusal
from transfer.router import bind_to, router_socket, send_now
from transfer.wakeup import WakeUp

_logger = logging.getLogger(__name__)
_IDLE_POLL_S = 1.0
_MAX_BATCH = 64
"""Most messages taken before timers are looked at again."""
_MAX_BELLS = 64
"""Most doorbells rung for one transfer; whoever has none is answered all the same."""
_MAX_ID_LENGTH = 256
"""Longest id of a transfer, which answers repeat; no reference has a longer one."""
_LINGER_MS = 200
_IO_THREADS = 2
_Chunks: TypeAlias = Iterable[tuple[Chunk, memoryview]]


@dataclass(slots=True)
class Counters:
    """What the thread counts; `num_unreachable`: answers to peers that had left, or did not read those before."""

    num_parked: int = 0
    num_fetched: int = 0
    num_refused: int = 0
    num_malformed: int = 0
    num_unreachable: int = 0


@dataclass(slots=True)
class ServerState:
    """What the API and the control thread share; `lock` guards `leases` and `waiting`, `counting` the `counters`.

    `waiting` has the transfers that fetches may be parked for, with the doorbells of those on this host.
    """

    leases: LeaseTable
    fingerprint: str
    channels: dict[str, SendChannel]
    max_park_s: float
    waiting: dict[str, set[str]] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    lock: threading.Lock = field(default_factory=threading.Lock)
    counting: threading.Lock = field(default_factory=threading.Lock)

    def forget(self, transfer_id: str) -> None:
        """A lease ended; called with the lock held."""
        self.waiting.pop(transfer_id, None)
        for channel in self.channels.values():
            channel.withdraw(transfer_id)


class ServerThread:
    """Owns the socket. Everything but `wake_by`, `changed` and `stop` runs in the thread."""

    def __init__(self, state: ServerState, bind_host: str, max_parked: int, curve: CurveKey | None) -> None:
        """Bind; raises zmq.ZMQError when that cannot be done."""
        self._state = state
        self._parking = ParkingLot(max_parked)
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._log = LimitedLog(_logger)
        self._context = zmq.Context(io_threads=_IO_THREADS)
        self._socket = router_socket(self._context)
        self._stop_authenticator = secure_server(self._socket, curve) if curve else None
        try:
            self.endpoint = bind_to(self._socket, bind_host)
        except zmq.ZMQError:
            self._close_socket(linger_ms=0)
            raise
        self._wakeup = WakeUp()
        self._wakes_at = 0.0
        self._thread = threading.Thread(target=self._run, name="embedding-server", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def wake_by(self, deadline: float) -> None:
        """Have the timers looked at then (monotonic seconds), or before; called with the state's lock held."""
        if deadline < self._wakes_at:
            self._wakeup.ring()

    def changed(self, transfer_id: str) -> None:
        """Answer what is parked for this transfer, by the lease's new state."""
        self._changed.put(transfer_id)
        self._wakeup.ring()

    def stop(self, timeout_s: float) -> None:
        """End the thread, after it has refused what is parked."""
        self._stopping.set()
        self._wakeup.ring()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _logger.error("embedding server thread did not stop within %s s", timeout_s)
            return
        self._wakeup.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wakeup.fileno(), zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                poller.poll(self._poll_timeout_ms())
                self._wakeup.clear()
                self._receive_batch()
                self._answer_changed()
                self._expire()
                with self._state.counting:
                    self._state.counters.num_parked = self._parking.num_parked
        except Exception:
            # The process edge: whoever asks for the encoder's health learns that nobody is answered any more.
            _logger.exception("embedding server thread failed")
        finally:
            self._end()

    def _end(self) -> None:
        try:
            for parked in self._parking.take_all():
                self._reply(parked.peer, failure(parked.request, EncoderLost("the encoder is shutting down")))
        finally:
            with self._state.counting:
                self._state.counters.num_parked = 0
            self._close_socket(_LINGER_MS)

    def _close_socket(self, linger_ms: int) -> None:
        self._socket.close(linger=linger_ms)
        if self._stop_authenticator is not None:
            self._stop_authenticator()
        self._context.term()

    def _poll_timeout_ms(self) -> int:
        with self._state.lock:
            now = time.monotonic()
            deadlines = [self._state.leases.next_deadline(), self._parking.next_deadline()]
            self._wakes_at = min([now + _IDLE_POLL_S, *(deadline for deadline in deadlines if deadline is not None)])
            return max(0, int((self._wakes_at - now) * 1000) + 1)

    def _receive_batch(self) -> None:
        for _ in range(_MAX_BATCH):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = frames[0]
            try:
                self._handle(peer, frames[1:])
            except ProtocolError as error:
                self._count_malformed(error)
                if isinstance(error, VersionMismatch):
                    # The peer cannot read this either, but learns from its own VersionMismatch what is wrong.
                    self._reply(peer, FetchReply(0, "", Status.INCOMPATIBLE, error_code=Incompatible.code))

    def _handle(self, peer: bytes, frames: list[bytes]) -> None:
        if len(frames) != 1:
            raise ProtocolError(f"expected one frame, got {len(frames)}")
        message = decode(frames[0], FetchRequest, Release, Renew)
        if len(message.transfer_id) > _MAX_ID_LENGTH:
            raise ProtocolError(f"a transfer id of {len(message.transfer_id)} characters")
        if isinstance(message, FetchRequest):
            deadline = time.monotonic() + min(message.timeout_s, self._state.max_park_s)
            self._answer(Parked(peer, message, deadline))
        elif isinstance(message, Renew):
            with self._state.lock:
                self._state.leases.renew(message.transfer_id)
        else:
            with self._state.lock:
                self._state.leases.release(message.transfer_id)
            self._answer_waiting(message.transfer_id)

    def _answer(self, parked: Parked) -> None:
        try:
            self._answer_by_state(parked)
        except Exception as error:
            # The process edge: a defect in answering one peer must not silence the server for all others.
            _logger.exception("answering a fetch failed")
            self._reply(parked.peer, failure(parked.request, TriptychError(f"internal error: {error}")))

    def _answer_by_state(self, parked: Parked) -> None:
        """Reply by the state of the lease, or park while there is nothing to say yet."""
        peer, request = parked.peer, parked.request
        if request.fingerprint != self._state.fingerprint:
            error = Incompatible("prefill and encoder serve different models, revisions, dtypes or layouts")
            self._reply(peer, refusal(request, Status.INCOMPATIBLE, error))
            return
        with self._state.lock:
            lease = self._state.leases.get(request.transfer_id)
            known = self._state.leases.state_of(request.transfer_id) is not None
            if lease is not None and lease.item_key != request.item_key:
                lease, known = None, False  # whoever asks for another item has no bell to be rung either
            state, payload, failed = (
                (LeaseState.EXPIRED, None, None) if lease is None else (lease.state, lease.payload, lease.error)
            )
            if state is LeaseState.ANNOUNCED:
                bells = self._state.waiting.setdefault(request.transfer_id, set())
                if request.bell and request.host_id == host_id() and len(bells) < _MAX_BELLS:
                    bells.add(request.bell)
        if not known:
            error_ = EmbeddingNotFound(f"transfer {request.transfer_id} is not known here")
            self._reply(peer, refusal(request, Status.NOT_FOUND, error_))
        elif lease is None:
            expired = EmbeddingExpired(f"the lease of transfer {request.transfer_id} has ended")
            self._reply(peer, refusal(request, Status.EXPIRED, expired))
        elif payload is not None:
            self._deliver(peer, request, lease, payload)
        elif failed is not None:
            self._reply(peer, failure(request, failed))
        elif not self._parking.park(parked):
            assert state is LeaseState.ANNOUNCED
            self._reply(peer, refusal(request, Status.BUSY, Busy("too many fetches wait at this encoder")))

    def _answer_waiting(self, transfer_id: str) -> None:
        for parked in self._parking.take(transfer_id):
            self._answer(parked)

    def _answer_changed(self) -> None:
        while True:
            try:
                self._answer_waiting(self._changed.get_nowait())
            except queue.Empty:
                return

    def _expire(self) -> None:
        with self._state.lock:
            expired = self._state.leases.sweep()
        for transfer_id in expired:
            self._answer_waiting(transfer_id)
        for parked in self._parking.take_overdue(time.monotonic()):
            error = DeadlineExceeded("the embedding was not ready in time")
            self._reply(parked.peer, refusal(parked.request, Status.BUSY, error))

    def _deliver(self, peer: bytes, request: FetchRequest, lease: Lease, payload: Payload) -> None:
        reply, channel = delivery(peer, request, lease, payload, self._state.channels)
        chunks = iter(()) if channel is None else channel.chunks(request.fetch_id, payload)
        # What is small comes with the reply: the client is woken once. What is large comes after it, since only then it
        # can be received straight into its place.
        _, first = next(chunks, (None, None)) if payload.num_bytes <= SMALL_BYTES else (None, None)
        self._reply(peer, reply, first, chunks)

    def _reply(self, peer: bytes, reply: FetchReply, data: memoryview | None = None, chunks: _Chunks = ()) -> None:
        """Send it and what follows, up to the first message that the peer does not take: it is as one that left."""
        with self._state.counting:  # so that whoever has the answer finds it counted
            counters = self._state.counters
            if not self._send(peer, reply, data) or not all(self._send(peer, *chunk) for chunk in chunks):
                counters.num_unreachable += 1
            elif reply.status is Status.OK:
                counters.num_fetched += 1
            else:
                counters.num_refused += 1

    def _send(self, peer: bytes, message: Message, data: memoryview | None = None) -> bool:
        failed = send_now(self._socket, peer, encode(message), data)
        if failed == errno.EAGAIN:
            self._log.warning("dropped an answer to a peer that asks and does not read")
        return not failed

    def _count_malformed(self, error: TriptychError) -> None:
        with self._state.counting:
            self._state.counters.num_malformed += 1
        self._log.warning(f"dropped a malformed message: {error}")
