"""One fetch on its way in: the parts that the encoder's ranks send, checked and put together into one tensor."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from transfer.channels.arena_reader import HeldBlock
from transfer.channels.base import InPlace, ReceiveChannel, Reception
from transfer.dtypes import DTYPE_BYTES
from transfer.errors import Busy, EmbeddingCorrupt, ProtocolError, TriptychError
from transfer.keys import host_id
from transfer.messages import Chunk, EmbeddingRef, FetchReply, FetchRequest, Segment, Status
from transfer.nearby import Allocate, Arrived, ArrivedFuture
from transfer.replies import reply_error
from transfer.tensors import buffer_to_tensor, empty_buffer


@dataclass(frozen=True, slots=True)
class _Part:
    reply: FetchReply
    reception: Reception


@dataclass(slots=True)
class Fetch:
    """A pending fetch of `ref`, to be over by `deadline` (monotonic seconds); one part per endpoint of the ref.

    Memory is allocated at the first good reply, after its sizes were checked against the ref. `in_place`: leave the
    embedding where the encoder put it, if its channel can have it held there.
    """

    fetch_id: int
    ref: EmbeddingRef
    deadline: float
    future: ArrivedFuture
    allocate: Allocate = empty_buffer
    in_place: bool = False
    without: frozenset[str] = frozenset()
    lane: int = 0
    _parts: dict[str, _Part] = field(default_factory=dict)
    _tensor: torch.Tensor | None = None
    _held: HeldBlock | None = None
    _buffer: memoryview = field(default_factory=lambda: memoryview(b""))

    @property
    def row_bytes(self) -> int:
        """Length of one row of the embedding."""
        return self.ref.width * DTYPE_BYTES[self.ref.dtype]

    def request(self, fingerprint: str, channels: tuple[str, ...], timeout_s: float, bell: str) -> FetchRequest:
        """What asks an encoder for it."""
        return FetchRequest(
            fetch_id=self.fetch_id,
            transfer_id=self.ref.transfer_id,
            item_key=self.ref.item_key,
            fingerprint=fingerprint,
            host_id=host_id(),
            channels=channels,
            timeout_s=timeout_s,
            bell=bell,
        )

    def take_reply(self, endpoint: str, reply: FetchReply, channels: Mapping[str, ReceiveChannel]) -> bool:
        """Take the answer of one endpoint; False when it is a duplicate or not meant for this fetch.

        Raises the typed error of a refusal, ProtocolError when the reply does not fit the ref, Busy when there is no
        memory, and what the channel raises for bytes it cannot deliver.
        """
        if endpoint in self._parts or endpoint not in self.ref.endpoints or reply.transfer_id != self.ref.transfer_id:
            return False
        if reply.status is not Status.OK:
            raise reply_error(reply)
        self._check(reply, channels)
        channel = channels[reply.channel]
        if self.in_place and len(self.ref.endpoints) == len(reply.segments) == 1:
            self._held = channel.hold(reply.segments[0])
        if self._held is not None:
            self._buffer = self._held.memory
            self._parts[endpoint] = _Part(reply, InPlace())
            self._verify(reply)
            return True
        if self._tensor is None:
            try:
                self._buffer = self.allocate(self.ref.expected_bytes)
            except OSError as error:
                raise Busy(f"no memory for an embedding of {self.ref.expected_bytes} bytes: {error}") from error
            self._tensor = buffer_to_tensor(self._buffer, (self.ref.num_tokens, self.ref.width), self.ref.dtype)
        reception = channel.open(reply, self._buffer, self.row_bytes)
        self._parts[endpoint] = _Part(reply, reception)
        if reception.complete:
            self._verify(reply)
        return True

    def take_chunk(self, endpoint: str, chunk: Chunk, data: memoryview) -> bool:
        """Take one data frame of one endpoint; False when that endpoint owes none. Raises as `take_reply`."""
        part = self._parts.get(endpoint)
        if part is None or part.reception.complete:
            return False
        part.reception.accept(chunk, data)
        if part.reception.complete:
            self._verify(part.reply)
        return True

    def place(self, endpoint: str, chunk: Chunk, num_bytes: int) -> memoryview | None:
        """Where one data frame of one endpoint may be written before `take_chunk` gets that memory."""
        part = self._parts.get(endpoint)
        return None if part is None else part.reception.place(chunk, num_bytes)

    def take_first_chunk(self, endpoint: str, data: memoryview) -> None:
        """Take the data that came with the reply: the first bytes of its first segment. Raises as `take_reply`."""
        segments = self._parts[endpoint].reply.segments
        if not segments:
            raise ProtocolError("data for a reply without rows")
        self.take_chunk(endpoint, Chunk(self.fetch_id, segments[0].row_start * self.row_bytes), data)

    def progress(self) -> bool:
        """Look at receptions that end by themselves; whether something may have changed. Raises EmbeddingCorrupt."""
        for part in self._parts.values():
            if part.reception.complete:
                self._verify(part.reply)
        return bool(self._parts)

    def failures(self) -> dict[str, TriptychError]:
        """The channels by which a part will never come, and why."""
        parts = self._parts.values()
        return {part.reply.channel: part.reception.failure for part in parts if part.reception.failure is not None}

    def memory(self, num_bytes: int) -> memoryview:
        """As `allocate`, for another try: the memory that this one has, if it has any."""
        return self.allocate(num_bytes) if self._tensor is None else self._buffer

    def give_back(self) -> None:
        """It failed: nobody will use what an encoder holds for it."""
        if self._held is not None:
            self._held.close()

    @property
    def begun(self) -> bool:
        """Whether a part has been taken."""
        return bool(self._parts)

    def result(self) -> Arrived | None:
        """The whole embedding [num_tokens, width] once every part is in; ProtocolError when rows are missing."""
        if len(self._parts) < len(self.ref.endpoints):
            return None
        if not all(part.reception.complete for part in self._parts.values()):
            return None
        num_rows = sum(end - start for start, end in self._row_ranges())
        if num_rows != self.ref.num_tokens:
            raise ProtocolError(f"encoder sent {num_rows} of {self.ref.num_tokens} rows")
        return self._tensor if self._held is None else self._held

    def _row_ranges(self) -> list[tuple[int, int]]:
        return [(row.row_start, row.row_end) for part in self._parts.values() for row in part.reply.segments]

    def _check(self, reply: FetchReply, channels: Mapping[str, ReceiveChannel]) -> None:
        if reply.shape != (self.ref.num_tokens, self.ref.width) or reply.dtype != self.ref.dtype:
            raise ProtocolError(f"encoder has {reply.shape} of {reply.dtype!r}, ticket says {self.ref}")
        if reply.channel not in channels:
            raise ProtocolError(f"encoder answered on channel {reply.channel!r}, which was not offered")
        taken = self._row_ranges()
        for segment in reply.segments:
            self._check_segment(segment, taken)
            taken.append((segment.row_start, segment.row_end))

    def _check_segment(self, segment: Segment, taken: list[tuple[int, int]]) -> None:
        start, end = segment.row_start, segment.row_end
        if start == end or end > self.ref.num_tokens or segment.num_bytes != (end - start) * self.row_bytes:
            raise ProtocolError(f"{segment} does not fit [{self.ref.num_tokens}, {self.ref.width}]")
        if any(start < other_end and other_start < end for other_start, other_end in taken):
            raise ProtocolError(f"{segment} overlaps rows that were sent already")

    def _verify(self, reply: FetchReply) -> None:
        if reply.checksum is None:
            return
        checksum = 0
        for segment in reply.segments:
            start = segment.row_start * self.row_bytes
            checksum = zlib.crc32(self._buffer[start : start + segment.num_bytes], checksum)
        if checksum != reply.checksum:
            raise EmbeddingCorrupt(f"checksum of transfer {reply.transfer_id} differs")
