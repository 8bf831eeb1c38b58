"""The shm channel: on one host, payloads lie in the encoder's arena and the client copies them once into its tensor.

The copy is guarded like a sequence lock: the block's header must name the transfer before and after it. A header is
cleared before its block can be used again, so a read that overlaps the end of a lease fails and never mixes bytes.
"""

import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from transfer.channels.arena import HEADER_BYTES, PREFIX, Arena, block_header
from transfer.channels.base import Payload, ReceiveChannel, Reception, SendChannel
from transfer.errors import EmbeddingExpired, EncoderLost, ProtocolError
from transfer.keys import host_id
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment
from transfer.owned_files import SHARED_MEMORY

_REGION = re.compile(re.escape(PREFIX) + r"\d{1,10}-[0-9a-f]{16}")
_MAX_MAPPED = 64


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

    def store(self, transfer_id: str, payload: Payload) -> Payload:
        """The payload in the arena, or the same one when there is no room."""
        if not payload.num_bytes:
            return payload
        stored = self._arena.store(transfer_id, payload.buffer)
        if stored is None:
            return payload
        buffer, offset = stored
        return Payload(
            buffer=buffer,
            row_start=payload.row_start,
            num_rows=payload.num_rows,
            row_bytes=payload.row_bytes,
            checksum=payload.checksum,
            region=self._arena.name,
            offset=offset,
        )

    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Whether the payload is in the arena and the peer can map it."""
        return payload.region == self._arena.name and request.host_id == host_id()

    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """One segment: the arena's file name under /dev/shm and the offset of the payload in it."""
        row_end = payload.row_start + payload.num_rows
        return (Segment(payload.row_start, row_end, payload.num_bytes, payload.region, payload.offset),)

    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """None: the client reads for itself."""
        return iter(())

    def close(self) -> None:
        """Remove the arena's file."""
        self._arena.close()


class _Copied(Reception):
    @property
    def complete(self) -> bool:
        return True

    def accept(self, chunk: Chunk, data: memoryview) -> None:
        raise ProtocolError("the shm channel has no chunks")


class ShmReceiveChannel(ReceiveChannel):
    """Maps arenas when first met, and forgets those whose owner removed them."""

    name: ClassVar[str] = "shm"

    def __init__(self) -> None:
        self._mapped: OrderedDict[str, mmap.mmap] = OrderedDict()

    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Copy every segment at once. Raises EncoderLost when the arena is gone, EmbeddingExpired when the block is."""
        header = block_header(reply.transfer_id)
        for segment in reply.segments:
            memory = self._map(segment.region)
            header_start, end = segment.offset - HEADER_BYTES, segment.offset + segment.num_bytes
            if header_start < 0 or end > len(memory):
                raise ProtocolError(f"{segment} leaves its arena of {len(memory)} bytes")
            first_byte = segment.row_start * row_bytes
            target = np.frombuffer(destination[first_byte : first_byte + segment.num_bytes], np.uint8)
            source = np.frombuffer(memory, np.uint8, segment.num_bytes, segment.offset)
            before = memory[header_start : segment.offset]
            np.copyto(target, source)
            if not before == header == memory[header_start : segment.offset]:
                raise EmbeddingExpired(f"the lease of transfer {reply.transfer_id} ended while it was read")
        return _Copied()

    def close(self) -> None:
        """Forget every mapping."""
        self._mapped.clear()

    def _map(self, region: str) -> mmap.mmap:
        memory = self._mapped.get(region)
        if memory is not None:
            self._mapped.move_to_end(region)
            return memory
        if not _REGION.fullmatch(region):
            raise ProtocolError(f"{region!r} is not the name of an arena")
        self._forget_removed()
        try:
            descriptor = os.open(SHARED_MEMORY / region, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise EncoderLost(f"arena {region} cannot be opened: {error.strerror}") from error
        try:
            # Populated: a page fault for every page of the first reads costs more than the copies themselves.
            memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise EncoderLost(f"arena {region} cannot be mapped: {error}") from error
        finally:
            os.close(descriptor)
        self._mapped[region] = memory
        return memory

    def _forget_removed(self) -> None:
        # A mapping keeps the memory of a removed file alive, so those of encoders that ended must go. They are dropped,
        # not closed: the traceback of an error that somebody keeps may still refer to one.
        for region in list(self._mapped):
            if not (SHARED_MEMORY / region).exists():
                del self._mapped[region]
        while len(self._mapped) >= _MAX_MAPPED:
            self._mapped.popitem(last=False)
