"""One connection from a client to one embedding server, that knows when its peer is gone."""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from transfer.channels.zmq_channel import CHUNK_BYTES
from transfer.curve import CurveKey, secure_client

_LINGER_MS = 200
_MAX_QUEUED_MESSAGES = 1024
_CURVE_OVERHEAD_BYTES = 256
_GONE: dict[int, str] = {
    zmq.Event.DISCONNECTED: "closed the connection or fell silent",
    zmq.Event.CLOSED: "cannot be reached",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "did not complete the handshake",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "does not speak our protocol",
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused our key",
}


class Link(ABC):
    """It never reconnects: a lost link is dropped and a later fetch opens another. Not thread-safe: the owner locks.

    Attributes:
        endpoint: the server's address.
        fetch_ids: the fetches that wait for something from it.
        max_batch: most messages to take from it before other links are looked at.
    """

    max_batch: ClassVar[int]

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.fetch_ids: set[int] = set()

    @abstractmethod
    def watch(self, poller: zmq.Poller) -> None:
        """Have the poller wait for what may happen next; called before every wait."""

    @abstractmethod
    def unwatch(self, poller: zmq.Poller) -> None:
        """Undo `watch`."""

    @abstractmethod
    def is_ready(self, ready: Collection[object]) -> bool:
        """Whether `receive` may bring something, by what the poller found."""

    @property
    def may_send(self) -> bool:
        """Whether another thread may call `send` while the one that uses this link waits in the poller."""
        return False

    @abstractmethod
    def send(self, message: bytes) -> None:
        """Queue one message of one frame; never blocks."""

    @abstractmethod
    def receive(self) -> list[memoryview] | None:
        """The frames of the next message, or None when none is there."""

    @abstractmethod
    def lost_reason(self, ready: Collection[object]) -> str | None:
        """Why the peer counts as lost, or None while it does not."""

    def next_look_s(self) -> float | None:
        """In how many seconds to ask for `lost_reason` at the latest; None when the poller will tell."""
        return None

    def forget(self, fetch_id: int) -> None:
        """Nothing is awaited for this fetch any more, and its memory is not to be written."""
        self.fetch_ids.discard(fetch_id)

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class ZmqLink(Link):
    """A DEALER socket and its monitor."""

    max_batch = 64

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        liveness_s: float,
        curve: CurveKey | None = None,
    ) -> None:
        """Start to connect; returns at once. Raises zmq.ZMQError when the address is not one.

        The peer counts as lost when it refuses, when it has not answered the handshake within `liveness_s`, or when
        it has been silent for that long (ZMTP heartbeats, answered below Python, so a busy encoder is not lost).
        """
        super().__init__(endpoint)
        liveness_ms = max(1, int(liveness_s * 1000))
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, liveness_ms)
        socket.setsockopt(zmq.HANDSHAKE_IVL, liveness_ms)
        socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, liveness_ms // 4))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, liveness_ms)
        socket.setsockopt(zmq.RCVHWM, _MAX_QUEUED_MESSAGES)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, CHUNK_BYTES + _CURVE_OVERHEAD_BYTES)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        if curve is not None:
            secure_client(socket, curve)
        self._socket = socket
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | sum(_GONE))
        self._connect_deadline = time.monotonic() + 2 * liveness_s
        self._established = False
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    def watch(self, poller: zmq.Poller) -> None:
        if self._socket not in poller:
            poller.register(self._socket, zmq.POLLIN)
            poller.register(self._monitor, zmq.POLLIN)

    def unwatch(self, poller: zmq.Poller) -> None:
        poller.unregister(self._socket)
        poller.unregister(self._monitor)

    def is_ready(self, ready: Collection[object]) -> bool:
        return self._socket in ready

    def send(self, message: bytes) -> None:
        self._socket.send(message, zmq.NOBLOCK)

    def receive(self) -> list[memoryview] | None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def lost_reason(self, ready: Collection[object]) -> str | None:
        if self._established and self._monitor not in ready:
            return None
        reason = None
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self._established = self._established or event == zmq.Event.HANDSHAKE_SUCCEEDED
            reason = _GONE.get(event, reason)
        if reason is None and not self._established and time.monotonic() > self._connect_deadline:
            reason = "was not reached in time"  # libzmq reports no event for a name that does not resolve
        return reason

    def close(self) -> None:
        """Give both sockets back; queued messages get a moment to leave."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
