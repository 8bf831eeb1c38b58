"""The shm channel: on one host, payloads lie in the encoder's arena and readers copy or hold them there."""

import mmap
from collections.abc import Iterator
from typing import ClassVar

from transfer.channels.arena import Arena
from transfer.channels.arena_reader import ArenaReader, HeldBlock
from transfer.channels.base import InPlace, Payload, ReceiveChannel, Reception, SendChannel
from transfer.channels.board import Listing
from transfer.keys import host_id
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment
from transfer.tensors import copy_bytes


class ShmSendChannel(SendChannel):
    """Owns an arena of `arena_bytes`; payloads that find no room stay where they are and go by another channel."""

    name: ClassVar[str] = "shm"

    def __init__(self, arena_bytes: int) -> None:
        """Raises OSError when /dev/shm has no room, ValueError when the arena could hold nothing."""
        if arena_bytes < 2 * mmap.PAGESIZE:
            raise ValueError(f"an arena needs at least {2 * mmap.PAGESIZE} bytes, got {arena_bytes}")
        self._arena = Arena(arena_bytes)

    @property
    def num_free_bytes(self) -> int:
        """Bytes of the arena that are in no block."""
        return self._arena.num_free_bytes

    def allocate(self, num_bytes: int) -> memoryview | None:
        """A block of the arena."""
        block = self._arena.allocate(num_bytes)
        return None if block is None else block.memory

    def store(self, payload: Payload) -> Payload:
        """The payload in the arena, where `allocate` may have put it before; the same one when there is no room."""
        if not payload.num_bytes:
            return payload
        buffer, found = payload.buffer, self._arena.find(payload.buffer)
        if found is None:
            block = self._arena.allocate(payload.num_bytes)
            if block is None:
                return payload
            copy_bytes(payload.buffer, block.memory)
            buffer, found = block.memory, (block.offset, block.block_id)
        offset, block_id = found
        return Payload(
            buffer=buffer,
            row_start=payload.row_start,
            num_rows=payload.num_rows,
            row_bytes=payload.row_bytes,
            checksum=payload.checksum,
            region=self._arena.name,
            offset=offset,
            block_id=block_id,
        )

    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Whether the payload is in the arena and the peer can map it."""
        return payload.region == self._arena.name and request.host_id == host_id()

    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """One segment: the arena's file name under /dev/shm, the offset of the payload in it, and its block."""
        row_end = payload.row_start + payload.num_rows
        return (
            Segment(payload.row_start, row_end, payload.num_bytes, payload.region, payload.offset, payload.block_id),
        )

    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """None: the client reads for itself."""
        return iter(())

    def advertise(self, transfer_id: str, payload: Payload) -> None:
        """List the transfer on the arena's board, if its payload is in the arena."""
        if payload.region == self._arena.name:
            listing = Listing(payload.block_id, payload.offset, payload.num_bytes, payload.row_start, payload.checksum)
            self._arena.board.put(transfer_id, listing)

    def withdraw(self, transfer_id: str) -> None:
        """Take it off the board."""
        self._arena.board.remove(transfer_id)

    def close(self) -> None:
        """Remove the arena's file."""
        self._arena.close()


class ShmReceiveChannel(ReceiveChannel):
    """Copies out of the arenas of encoders on this host, or holds blocks there."""

    name: ClassVar[str] = "shm"

    def __init__(self) -> None:
        self.reader = ArenaReader()

    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Copy every segment at once. Raises EncoderLost when the arena is gone, EmbeddingExpired when the block is."""
        for segment in reply.segments:
            first_byte = segment.row_start * row_bytes
            target = destination[first_byte : first_byte + segment.num_bytes]
            self.reader.copy(segment.region, segment.offset, segment.block_id, target)
        return InPlace()

    def hold(self, segment: Segment) -> HeldBlock:
        """The segment where it is. Raises as `open`."""
        return self.reader.hold(segment.region, segment.offset, segment.num_bytes, segment.block_id)

    def close(self) -> None:
        """Forget every mapping."""
        self.reader.close()
