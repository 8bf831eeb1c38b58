"""What a channel is: one way for the bytes of an embedding to get from an encoder to a prefill worker.

Control always travels over ZMQ: FetchRequest, FetchReply, Release. A channel is only about the bytes.

1. The encoder may ask the channel for memory to write its output into (`allocate`). It calls `store` once per
   transfer, in its own thread, before the embedding counts as ready. The channel returns the payload to hold: the same
   one, or one whose bytes lie where the channel wants them. What `allocate` gave is not copied again, and transfers of
   one embedding share it. `advertise` and `withdraw` tell the channel when a transfer can be fetched.
2. On a fetch, the server takes the first of the request's channels that `can_serve` the payload to this peer, puts
   its `segments` in the FetchReply, and sends `chunks` with and after it on the same connection, in order.
3. The client calls `open` with the reply and the destination; it gets a Reception. Data frames that follow go to
   `accept`; `complete` says when all segments are in. A channel without chunks is complete on return of `open`.
   A channel that receives on threads of its own calls `on_progress` when a reception is complete or has a `failure`;
   after a failure the client asks again, naming the other channels only.
   What was not opened, since its fetch had ended or there was no memory for it, goes to `decline` instead.
4. Nothing is freed by a fetch. Payloads end with their lease; a channel that shares memory must make a read that
   overlaps the end of a lease fail with a typed error, never return other bytes.
5. `close` frees what the channel owns; idempotent.

Errors: `open` and `accept` raise ProtocolError for what the sender may not send, EmbeddingExpired or EmbeddingCorrupt
for bytes that cannot be trusted, EncoderLost when the sender's end is gone. Methods must not block on the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from transfer.channels.arena_reader import HeldBlock
from transfer.errors import ProtocolError, TriptychError
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """Rows [row_start, row_start + num_rows) of an embedding [N, W] as flat bytes, never written again.

    `row_bytes` is the length of one row; `num_rows` may be 0 for a rank that got none. `checksum` is a CRC-32, or None.
    `region`, `offset` and `block_id` are set by channels that share memory.
    """

    buffer: memoryview
    row_start: int
    num_rows: int
    row_bytes: int
    checksum: int | None = None
    region: str = ""
    offset: int = 0
    block_id: str = ""

    @property
    def num_bytes(self) -> int:
        """Length of the payload."""
        return self.buffer.nbytes


class SendChannel(ABC):
    """The encoder's end of a channel. All methods are thread-safe."""

    name: ClassVar[str]

    def allocate(self, num_bytes: int) -> memoryview | None:
        """Writable memory that `store` will not copy; None when the channel has none, or none left."""
        return None

    @abstractmethod
    def store(self, payload: Payload) -> Payload:
        """The payload to hold for a transfer; may copy."""

    @abstractmethod
    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Whether this peer can receive this payload here."""

    @abstractmethod
    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """Where the client finds the payload; empty when it has no rows."""

    def begin(self, peer: bytes, payload: Payload) -> tuple[Segment, ...]:
        """As `segments`, for the peer (its control connection) that is about to be told; may start to send."""
        return self.segments(payload)

    @abstractmethod
    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """Data messages to send after the reply; empty for channels that use other ways."""

    def advertise(self, transfer_id: str, payload: Payload) -> None:  # noqa: B027
        """From now on the payload that `store` gave can be fetched under this id; called under the server's lock."""

    def withdraw(self, transfer_id: str) -> None:  # noqa: B027
        """It cannot any more; called once when a lease ends, advertised or not, under the server's lock."""

    @abstractmethod
    def close(self) -> None:
        """Free what the channel owns."""


class Reception(ABC):
    """One reply's bytes on their way in."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether every byte of every segment is in place."""

    @property
    def failure(self) -> TriptychError | None:
        """Why the rest will never come by this channel, though another may bring it; None while it may."""
        return None

    def place(self, chunk: Chunk, num_bytes: int) -> memoryview | None:
        """Where the data of this message may be written before `accept` takes that very memory; None for anywhere."""
        return None

    @abstractmethod
    def accept(self, chunk: Chunk, data: memoryview) -> None:
        """Take one data message."""


def _ignore(fetch_id: int) -> None:
    pass


class InPlace(Reception):
    """Nothing is on its way: the bytes were copied at once, or are used where they are."""

    @property
    def complete(self) -> bool:
        return True

    def accept(self, chunk: Chunk, data: memoryview) -> None:
        raise ProtocolError("this channel has no chunks")


class ReceiveChannel(ABC):
    """The client's end of a channel; used by one thread."""

    name: ClassVar[str]
    per_connection: ClassVar[bool] = False
    """Whether both ends are set up anew for each control connection, so that several to one encoder bring nothing."""
    on_progress: Callable[[int], None] = staticmethod(_ignore)
    """Set by the client: to be called with the fetch id when a reception ended without its help. Thread-safe."""

    @abstractmethod
    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Start receiving an OK reply into `destination`, the flat bytes of the whole embedding.

        The segments were checked: inside the embedding, forward, not overlapping, and of matching length.
        """

    def hold(self, segment: Segment) -> HeldBlock | None:
        """The segment where the encoder put it, instead of `open`; None when the channel cannot. Raises as `open`."""
        return None

    def decline(self, reply: FetchReply) -> None:  # noqa: B027
        """Do without an OK reply that nobody opened; its segments are unchecked.

        Never raises. Nothing happens for a reply that was opened or declined before.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what the channel owns."""
