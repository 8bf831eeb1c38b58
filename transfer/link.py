"""One connection from a client to one embedding server, that knows when its peer is gone."""

import time
from dataclasses import dataclass

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


@dataclass(slots=True)
class Link:
    """A DEALER socket and its monitor. It never reconnects: a lost link is dropped and a later fetch opens another."""

    endpoint: str
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    connect_deadline: float
    established: bool = False

    @classmethod
    def connect(
        cls,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        liveness_s: float,
        curve: CurveKey | None = None,
    ) -> "Link":
        """Start to connect; returns at once. Raises zmq.ZMQError when the address is not one.

        The peer counts as lost when it refuses, when it has not answered the handshake within `liveness_s`, or when
        it has been silent for that long (ZMTP heartbeats, answered below Python, so a busy encoder is not lost).
        """
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
        monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | sum(_GONE))
        link = cls(endpoint, socket, monitor, time.monotonic() + 2 * liveness_s)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            link.close()
            raise
        return link

    def send(self, frame: bytes) -> None:
        """Queue one message; never blocks."""
        self.socket.send(frame, zmq.NOBLOCK)

    def receive(self) -> list[zmq.Frame] | None:
        """The next message, or None when none is there."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None

    def lost_reason(self) -> str | None:
        """Why the peer counts as lost, or None while it does not."""
        reason = None
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            self.established = self.established or event == zmq.Event.HANDSHAKE_SUCCEEDED
            reason = _GONE.get(event, reason)
        if reason is None and not self.established and time.monotonic() > self.connect_deadline:
            reason = "was not reached in time"  # libzmq reports no event for a name that does not resolve
        return reason

    def close(self) -> None:
        """Give both sockets back; queued messages get a moment to leave."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
