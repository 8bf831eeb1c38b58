"""A TCP proxy that a test can have cut, or stop reading, in either direction, while both connections stay open."""

import contextlib
import socket
import threading

_PIECE = 64 * 1024


class Proxy:
    """Forwards connections to `target` (tcp://host:port); `close` ends all of them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_cut = threading.Event()
        self.num_bytes_back = 0
        self.max_bytes_back: int | None = None
        self._sockets: list[socket.socket] = []
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on every byte of either side is lost, and neither side is told."""
        self.is_cut.set()

    def close(self) -> None:
        """Reset everything."""
        self._closing = True
        for opened in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                threading.Thread(target=self._forward, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._forward, args=(far, near, True), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, is_back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                if is_back:
                    self.num_bytes_back += len(data)
                    if self.max_bytes_back is not None and self.num_bytes_back > self.max_bytes_back:
                        self.cut()
                if not self.is_cut.is_set():
                    target.sendall(data)
        if not self.is_cut.is_set() and not self._closing:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)
