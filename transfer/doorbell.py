"""A bell between two processes of one host: an encoder rings it the moment an embedding is ready in shared memory.

A datagram socket in the abstract namespace, so that nothing is left behind. What it carries does not matter: whoever
hears it looks at the arena's board (see `channels/board.py`). A bell that is lost costs time only, since the answer by
ZMQ follows in any case.
"""

import contextlib
import re
import socket
import threading

_NAME = re.compile("[0-9a-f]{1,32}")


class Doorbell:
    """The listening end; register `fileno()` with a poller for reading."""

    def __init__(self) -> None:
        """Raises OSError where the platform has no such sockets."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.bind("")  # the kernel chooses a free abstract name
        name: bytes = self._socket.getsockname()
        self.name = name[1:].decode("ascii")

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    def clear(self) -> None:
        """Forget what has rung."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)

    def close(self) -> None:
        """Give the socket back; idempotent."""
        self._socket.close()


class Ringer:
    """The encoder's end, for any number of bells. Thread-safe; never blocks."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._lock = threading.Lock()

    def ring(self, name: str) -> None:
        """Ring a bell by the name that its owner gave; nothing when there is none."""
        with self._lock, contextlib.suppress(OSError):
            if _NAME.fullmatch(name):
                self._socket.sendto(b"!", f"\0{name}".encode("ascii"))

    def close(self) -> None:
        """Give the socket back; idempotent. Ringing after it does nothing."""
        with self._lock:
            self._socket.close()
