"""What a channel is: one way for the bytes of an embedding to get from an encoder to a prefill worker.

Control always travels over ZMQ: FetchRequest, FetchReply, Release. A channel is only about the bytes.

1. The encoder calls `store` once per embedding, in its own thread, before the embedding is announced as ready. The
   channel returns the payload to hold: the same one, or one whose bytes lie where the channel wants them.
2. On a fetch, the server takes the first of the request's channels that `can_serve` the payload to this peer, puts
   its `segments` in the FetchReply, and sends `chunks` after it on the same connection, in order.
3. The client calls `open` with the reply and the destination; it gets a Reception. Data frames that follow go to
   `accept`; `complete` says when all segments are in. A channel without chunks is complete on return of `open`.
4. Nothing is freed by a fetch. Payloads end with their lease; a channel that shares memory must make a read that
   overlaps the end of a lease fail with a typed error, never return other bytes.
5. `close` frees what the channel owns; idempotent.

Errors: `open` and `accept` raise ProtocolError for what the sender may not send, EmbeddingExpired or EmbeddingCorrupt
for bytes that cannot be trusted, EncoderLost when the sender's end is gone. Methods must not block on the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from transfer.messages import Chunk, FetchReply, FetchRequest, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Rows [row_start, row_start + num_rows) of an embedding [N, W] as flat bytes, never written again.

    `row_bytes` is the length of one row; `num_rows` may be 0 for a rank that got none. `checksum` is a CRC-32, or None.
    `region` and `offset` are set by channels that share memory.
    """

    buffer: memoryview
    row_start: int
    num_rows: int
    row_bytes: int
    checksum: int | None = None
    region: str = ""
    offset: int = 0

    @property
    def num_bytes(self) -> int:
        """Length of the payload."""
        return self.buffer.nbytes


class SendChannel(ABC):
    """The encoder's end of a channel. All methods are thread-safe."""

    name: ClassVar[str]

    @abstractmethod
    def store(self, transfer_id: str, payload: Payload) -> Payload:
        """The payload to hold for this transfer; may copy."""

    @abstractmethod
    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Whether this peer can receive this payload here."""

    @abstractmethod
    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """Where the client finds the payload; empty when it has no rows."""

    @abstractmethod
    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """Data messages to send after the reply; empty for channels that use other ways."""

    @abstractmethod
    def close(self) -> None:
        """Free what the channel owns."""


class Reception(ABC):
    """One reply's bytes on their way in."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether every byte of every segment is in place."""

    @abstractmethod
    def accept(self, chunk: Chunk, data: memoryview) -> None:
        """Take one data message."""


class ReceiveChannel(ABC):
    """The client's end of a channel; used by one thread."""

    name: ClassVar[str]

    @abstractmethod
    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Start receiving an OK reply into `destination`, the flat bytes of the whole embedding.

        The segments were checked: inside the embedding, forward, not overlapping, and of matching length.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the channel owns."""
