"""The zmq channel: payloads as bounded frames on the control connection, sent without a copy, over any network."""

from collections.abc import Iterator
from typing import ClassVar

from transfer.channels.base import Payload, ReceiveChannel, Reception, SendChannel
from transfer.errors import ProtocolError
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment

SMALL_BYTES = 1024 * 1024
"""Most bytes of a payload that come on the connection of all that is small, with the reply to their fetch."""
CHUNK_BYTES = 4 * 1024 * 1024
"""Size of a data frame; the last one of a payload is shorter. Part of the protocol: receivers refuse longer frames."""


class ZmqSendChannel(SendChannel):
    """Holds nothing: the frames refer to the payload's own memory."""

    name: ClassVar[str] = "zmq"

    def store(self, payload: Payload) -> Payload:
        """The payload itself."""
        return payload

    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Always: whoever can ask can receive."""
        return True

    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """One segment that follows on the connection."""
        if not payload.num_rows:
            return ()
        return (Segment(payload.row_start, payload.row_start + payload.num_rows, payload.num_bytes),)

    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """The payload in order, in frames of CHUNK_BYTES."""
        first_byte = payload.row_start * payload.row_bytes
        for start in range(0, payload.num_bytes, CHUNK_BYTES):
            yield Chunk(fetch_id, first_byte + start), payload.buffer[start : start + CHUNK_BYTES]

    def close(self) -> None:
        """Nothing to free."""


class _ZmqReception(Reception):
    def __init__(self, segments: tuple[Segment, ...], destination: memoryview, row_bytes: int) -> None:
        self._destination = destination
        self._ranges = [(part.row_start * row_bytes, part.row_end * row_bytes) for part in segments]
        self._next_byte = self._ranges[0][0] if self._ranges else 0
        self._placed: memoryview | None = None

    @property
    def complete(self) -> bool:
        return not self._ranges

    def place(self, chunk: Chunk, num_bytes: int) -> memoryview | None:
        if self.complete or chunk.offset != self._next_byte or chunk.offset + num_bytes > self._ranges[0][1]:
            return None  # `accept` will say why
        self._placed = self._destination[chunk.offset : chunk.offset + num_bytes]
        return self._placed

    def accept(self, chunk: Chunk, data: memoryview) -> None:
        if self.complete or chunk.offset != self._next_byte:
            raise ProtocolError(f"chunk at byte {chunk.offset} is out of order")
        end = chunk.offset + data.nbytes
        if not data.nbytes or end > self._ranges[0][1]:
            raise ProtocolError(f"chunk of {data.nbytes} bytes at byte {chunk.offset} leaves its segment")
        if data is not self._placed:
            self._destination[chunk.offset : end] = data
        self._next_byte = end
        if end == self._ranges[0][1]:
            del self._ranges[0]
            self._next_byte = self._ranges[0][0] if self._ranges else end


class ZmqReceiveChannel(ReceiveChannel):
    """Copies frames into place as they arrive, where the connection did not put them there."""

    name: ClassVar[str] = "zmq"

    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Wait for the chunks of every segment, in order."""
        return _ZmqReception(reply.segments, destination, row_bytes)

    def close(self) -> None:
        """Nothing to free."""
