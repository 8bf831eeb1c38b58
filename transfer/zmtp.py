"""The wire format of ZeroMQ (ZMTP 3.1, ZeroMQ RFC 37) as a DEALER without security sees it; pure.

A peer's bytes are asked for piece by piece (`wanted`), each piece into memory that is chosen once its length is known:
that of a data frame is the embedding's own.
"""

from collections import deque
from collections.abc import Callable, Generator

from transfer.errors import ProtocolError

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_MAX_COMMAND_BYTES = 512
_MAX_PING_CONTEXT_BYTES = 16
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
"""What either end says first: version 3.1, no security."""
_SOCKET_TYPE, _TYPE = b"Socket-Type", b"DEALER"

Place = Callable[[memoryview, int], tuple[int, memoryview] | None]
"""Given a message's first frame and the length of its second: the fetch and the memory where that one is to be written,
or None for anywhere."""


def frame(body: bytes, command: bool = False) -> bytes:
    """One frame that is not followed by another of its message, for the wire."""
    flags = _COMMAND if command else 0
    if len(body) > 255:
        return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def command(name: bytes, body: bytes = b"") -> bytes:
    """A command, for the wire."""
    return frame(bytes([len(name)]) + name + body, command=True)


READY = command(
    b"READY",
    bytes([len(_SOCKET_TYPE)]) + _SOCKET_TYPE + len(_TYPE).to_bytes(4, "big") + _TYPE + b"\x08Identity" + bytes(4),
)
"""What either end says after the other's greeting."""
PING = command(b"PING", bytes(2))
"""Asks for a sign of life, and sets no time by which this end counts as dead."""


class ZmtpReader:
    """Reads what a peer sends: fill `wanted`, then call `advance`. Raises ProtocolError for what no peer may send.

    Messages have one or two frames. `answers` collects what is to be sent back, first of all READY. `placed_for` is the
    fetch whose memory `wanted` is, while it is. `num_commands` counts what comes beside messages.
    """

    def __init__(self, place: Place, max_first_bytes: int, max_second_bytes: int) -> None:
        """`max_first_bytes` and `max_second_bytes` bound the two frames, before memory is taken for them."""
        self._place = place
        self._max_bytes = (max_first_bytes, max_second_bytes)
        self._messages: deque[list[memoryview]] = deque()
        self.answers: deque[bytes] = deque()
        self.ready = False
        self.placed_for: int | None = None
        self.num_commands = 0
        self._steps = self._read()
        self.wanted = next(self._steps)

    def advance(self) -> None:
        """`wanted` has been filled; it is the next piece afterwards."""
        self.wanted = next(self._steps)

    def next_message(self) -> list[memoryview] | None:
        """A message that is complete, or None."""
        return self._messages.popleft() if self._messages else None

    def _read(self) -> Generator[memoryview, None, None]:
        greeting = bytearray(_GREETING_BYTES)
        yield memoryview(greeting)
        if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
            raise ProtocolError("the peer does not speak ZMTP 3")
        if bytes(greeting[_MECHANISM]).rstrip(b"\0") != b"NULL":
            raise ProtocolError("the peer asks for another security mechanism")
        self.answers.append(READY)
        frames: list[memoryview] = []
        while True:
            flags, num_bytes = yield from self._head()
            if flags & _COMMAND:
                yield from self._command(num_bytes)
                continue
            if not self.ready:
                raise ProtocolError("a message before the handshake ended")
            if len(frames) == 2 or num_bytes > self._max_bytes[len(frames)]:
                raise ProtocolError(f"a frame of {num_bytes} bytes at position {len(frames)} of its message")
            placed = self._place(frames[0], num_bytes) if frames else None
            self.placed_for, body = placed or (None, memoryview(bytearray(num_bytes)))
            if num_bytes:
                yield body
            self.placed_for = None
            frames.append(body)
            if not flags & _MORE:
                self._messages.append(frames)
                frames = []

    def _head(self) -> Generator[memoryview, None, tuple[int, int]]:
        head = bytearray(2)
        yield memoryview(head)
        flags, num_bytes = head
        if flags & ~(_MORE | _LONG | _COMMAND) or (flags & _COMMAND and flags & _MORE):
            raise ProtocolError(f"a frame with flags {flags}")
        if flags & _LONG:
            rest = bytearray(7)
            yield memoryview(rest)
            num_bytes = int.from_bytes(head[1:] + rest, "big")
        return flags, num_bytes

    def _command(self, num_bytes: int) -> Generator[memoryview, None, None]:
        if not 0 < num_bytes <= _MAX_COMMAND_BYTES:
            raise ProtocolError(f"a command of {num_bytes} bytes")
        body = bytearray(num_bytes)
        yield memoryview(body)
        self.num_commands += 1
        name, rest = bytes(body[1 : 1 + body[0]]), bytes(body[1 + body[0] :])
        if name == b"READY" and not self.ready:
            self.ready = True
        elif name == b"PING" and self.ready:
            self.answers.append(command(b"PONG", rest[2 : 2 + _MAX_PING_CONTEXT_BYTES]))
        elif name == b"ERROR" or not self.ready:
            raise ProtocolError(f"the peer refused the handshake: {rest[1:]!r}")
