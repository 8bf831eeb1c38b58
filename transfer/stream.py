"""A connection to an embedding server that receives data frames straight into their place.

libzmq hands out what arrives in memory of its own, which costs a large embedding a second copy. This speaks the same
protocol over a plain socket. It has no encryption: with a cluster key, libzmq's own connections are used (see `link`).
"""

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Collection

import zmq

from transfer.channels.zmq_channel import CHUNK_BYTES
from transfer.codec import MAX_CONTROL_BYTES
from transfer.errors import ProtocolError
from transfer.link import Link
from transfer.zmtp import GREETING, PING, Place, ZmtpReader, frame

_SCRATCH_BYTES = 4096
_MAX_COMMANDS = 64
"""Commands of a peer, such as pings, that are taken before other links have their turn."""
_MAX_QUEUED_ANSWERS = 16
"""A peer that does not read them needs no more."""


class StreamLink(Link):
    """A non-blocking TCP connection."""

    max_batch = 4

    def __init__(self, endpoint: str, address: tuple[str, int], liveness_s: float, place: Place) -> None:
        """Start to connect to `address`; returns at once. Raises OSError when that cannot even begin.

        The peer counts as lost when it cannot be reached, when it has not ended the handshake within twice
        `liveness_s`, when it closes the connection, or when something is awaited from it and it has been silent for
        `liveness_s`, most of them after a question (ZMTP heartbeats, which it answers below Python). So a client that
        did not run for a while asks before it believes that the silence was the peer's.
        """
        super().__init__(endpoint)
        self._reader = ZmtpReader(place, MAX_CONTROL_BYTES, CHUNK_BYTES)
        self._unfilled = self._reader.wanted
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._unread = self._scratch[:0]
        self._queued: deque[memoryview] = deque([memoryview(GREETING)])
        self._until_ready: list[bytes] = []
        self._lost: str | None = None
        self._has_ended = False  # nothing more can be read
        self._liveness_s = liveness_s
        self._quiet_since = time.monotonic()  # since when neither the peer nor a ping of ours was heard
        self._unanswered_since: float | None = None  # the first ping after the peer was last heard
        self._connect_deadline = self._quiet_since + 2 * liveness_s
        self._is_watched_for_room = False
        self._socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self._socket.close()
            raise OSError(code, os.strerror(code))

    def watch(self, poller: zmq.Poller) -> None:
        descriptor, wants_room = self._socket.fileno(), bool(self._queued)
        if descriptor not in poller or wants_room != self._is_watched_for_room:
            poller.register(descriptor, zmq.POLLIN | zmq.POLLOUT if wants_room else zmq.POLLIN)
            self._is_watched_for_room = wants_room

    def unwatch(self, poller: zmq.Poller) -> None:
        poller.unregister(self._socket.fileno())

    def is_ready(self, ready: Collection[object]) -> bool:
        return bool(self._unread) or self._socket.fileno() in ready

    @property
    def may_send(self) -> bool:
        return self._reader.ready and self._lost is None

    def send(self, message: bytes) -> None:
        if not self._awaits:
            self._hear()  # silence before did not matter
        if self._reader.ready:
            self._queued.append(memoryview(frame(message)))
            self._write()
        else:
            self._until_ready.append(message)

    def receive(self) -> list[memoryview] | None:
        self._write()
        last_command = self._reader.num_commands + _MAX_COMMANDS
        while (message := self._reader.next_message()) is None:
            if self._has_ended or self._reader.num_commands >= last_command or not self._read():
                return None
        return message

    def lost_reason(self, ready: Collection[object]) -> str | None:
        now = time.monotonic()
        if self._lost is None and not self._reader.ready and now > self._connect_deadline:
            self._lost = "was not reached in time"
        if self._lost is None and self._reader.ready and self._awaits:
            if self._unanswered_since is not None and now > self._unanswered_since + self._liveness_s * 3 / 4:
                self._lost = "fell silent"
            elif now > self._quiet_since + self._liveness_s / 4:
                self._ping(now)
        return self._lost

    def next_look_s(self) -> float | None:
        if self._unread:
            return 0.0  # messages that were read with those before them, of which no poller knows
        return self._liveness_s / 4 if self._awaits or not self._reader.ready else None

    def forget(self, fetch_id: int) -> None:
        super().forget(fetch_id)
        if self._reader.placed_for == fetch_id:
            self._unfilled = memoryview(bytearray(self._unfilled.nbytes))
            self._reader.placed_for = None

    def close(self) -> None:
        self._socket.close()

    @property
    def _awaits(self) -> bool:
        return bool(self.fetch_ids)

    def _hear(self) -> None:
        self._quiet_since = time.monotonic()
        self._unanswered_since = None

    def _ping(self, now: float) -> None:
        self._quiet_since = now
        self._unanswered_since = self._unanswered_since or now
        self._queued.append(memoryview(PING))
        self._write()

    def _write(self) -> None:
        try:
            while self._queued and self._lost is None:
                num_sent = self._socket.send(self._queued[0], socket.MSG_NOSIGNAL)
                if num_sent < self._queued[0].nbytes:
                    self._queued[0] = self._queued[0][num_sent:]
                    return
                self._queued.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)

    def _read(self) -> bool:
        """Take what is there, up to the end of the wanted piece; False when there is nothing."""
        try:
            if not self._unread:
                return self._receive()
            num_bytes = min(self._unread.nbytes, self._unfilled.nbytes)
            self._unfilled[:num_bytes] = self._unread[:num_bytes]
            self._unread = self._unread[num_bytes:]
            self._fill(num_bytes)
        except BlockingIOError:
            return False
        except OSError as error:
            self._has_ended = self._lose(error)
            return False
        except ProtocolError as error:
            self._lost, self._has_ended = f"does not speak our protocol: {error}", True
            return False
        return True

    def _receive(self) -> bool:
        """Small pieces together by way of `_scratch`, since a call costs more than they do; others to their place."""
        is_small = self._unfilled.nbytes <= _SCRATCH_BYTES
        num_bytes = self._socket.recv_into(self._scratch if is_small else self._unfilled)
        if not num_bytes:
            self._lost, self._has_ended = self._lost or "closed the connection", True
            return False
        self._hear()
        if is_small:
            self._unread = self._scratch[:num_bytes]
        else:
            self._fill(num_bytes)
        return True

    def _fill(self, num_bytes: int) -> None:
        self._unfilled = self._unfilled[num_bytes:]
        if not self._unfilled:
            self._reader.advance()
            self._unfilled = self._reader.wanted
            self._answer()

    def _answer(self) -> None:
        while self._reader.answers:
            answer = self._reader.answers.popleft()
            if len(self._queued) < _MAX_QUEUED_ANSWERS:
                self._queued.append(memoryview(answer))
        if self._reader.ready and self._until_ready:
            self._queued.extend(memoryview(frame(message)) for message in self._until_ready)
            self._until_ready.clear()
        if self._queued:
            self._write()

    def _lose(self, error: OSError) -> bool:
        if error.errno == errno.ENOTCONN:  # still connecting
            return False
        how = "is gone" if self._reader.ready else "cannot be reached"
        self._lost = self._lost or f"{how}: {error.strerror}"
        return True
