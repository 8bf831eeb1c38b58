"""A wake-up that any thread can ring and a ZMQ poller can wait on."""

import os
import threading


class WakeUp:
    """One Linux eventfd; register `fileno()` with a poller for reading. Ringing after `close` does nothing."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._descriptor

    def ring(self) -> None:
        """Make the descriptor readable; cheap, thread-safe, may be rung many times before it is cleared."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Make it unreadable until the next ring."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptor back; only once nothing polls it any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)
