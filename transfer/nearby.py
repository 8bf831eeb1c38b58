"""Embeddings of encoders on this host, had without asking: looked up on the boards of their arenas.

An encoder's arena is known from its first answer on the shm channel, which it gives only after it has compared version,
fingerprint and host.
"""

import zlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

import torch

from transfer.channels.arena_reader import ArenaReader, HeldBlock
from transfer.channels.board import Listing
from transfer.dtypes import DTYPE_BYTES
from transfer.errors import Busy, EmbeddingCorrupt, ProtocolError, TriptychError
from transfer.messages import EmbeddingRef, FetchReply
from transfer.tensors import buffer_to_tensor

Allocate = Callable[[int], memoryview]
"""Gives writable memory of that many bytes, called at most once per fetch. May raise TriptychError or OSError."""
Arrived: TypeAlias = torch.Tensor | HeldBlock
"""An embedding [num_tokens, width] in memory of this process, or where its encoder put it."""
ArrivedFuture: TypeAlias = "Future[Arrived]"
_MAX_KNOWN = 1024


class Nearby:
    """Which arenas belong to which endpoints, and what is in them. Thread-safe."""

    def __init__(self, reader: ArenaReader) -> None:
        self._reader = reader
        self._regions: dict[str, str] = {}

    def learn(self, endpoint: str, reply: FetchReply) -> None:
        """Take note of the arena of an endpoint that answered on the shm channel and was read."""
        if reply.segments and self._regions.get(endpoint) != reply.segments[0].region:
            if len(self._regions) >= _MAX_KNOWN:
                self._regions.clear()
            self._regions[endpoint] = reply.segments[0].region

    def get(self, ref: EmbeddingRef, allocate: Allocate, in_place: bool) -> Arrived | TriptychError | None:
        """The embedding, or why it cannot be had although it is here; None when its encoders must be asked."""
        found = []
        for endpoint in ref.endpoints:
            region = self._regions.get(endpoint)
            listing = None if region is None else self._reader.find(region, ref.transfer_id)
            if region is None or listing is None:
                return None
            found.append((region, listing))
        try:
            _check_rows(ref, [listing for _, listing in found])
            if in_place and len(found) == 1:
                return self._hold(ref, *found[0])
            return self._copy(ref, found, allocate)
        except TriptychError as error:
            return error
        except OSError as error:
            return Busy(f"no memory for an embedding of {ref.expected_bytes} bytes: {error}")

    def _hold(self, ref: EmbeddingRef, region: str, listing: Listing) -> HeldBlock:
        held = self._reader.hold(region, listing.offset, listing.num_bytes, listing.block_id)
        try:
            _verify(ref, listing, held.memory)
        except EmbeddingCorrupt:
            held.close()
            raise
        return held

    def _copy(self, ref: EmbeddingRef, found: list[tuple[str, Listing]], allocate: Allocate) -> torch.Tensor:
        row_bytes = ref.width * DTYPE_BYTES[ref.dtype]
        buffer = allocate(ref.expected_bytes)
        for region, listing in found:
            start = listing.row_start * row_bytes
            target = buffer[start : start + listing.num_bytes]
            self._reader.copy(region, listing.offset, listing.block_id, target)
            _verify(ref, listing, target)
        return buffer_to_tensor(buffer, (ref.num_tokens, ref.width), ref.dtype)


def _check_rows(ref: EmbeddingRef, listings: list[Listing]) -> None:
    """Raise ProtocolError unless the parts hold every row exactly once."""
    row_bytes, end = ref.width * DTYPE_BYTES[ref.dtype], 0
    for listing in sorted(listings, key=Listing.first_row) if len(listings) > 1 else listings:
        if listing.row_start * row_bytes != end:
            raise ProtocolError(f"the parts of transfer {ref.transfer_id} leave a gap or overlap at byte {end}")
        end += listing.num_bytes
    if end != ref.expected_bytes:
        raise ProtocolError(f"the parts of transfer {ref.transfer_id} add up to {end}, not {ref.expected_bytes} bytes")


def _verify(ref: EmbeddingRef, listing: Listing, data: memoryview) -> None:
    if listing.checksum is not None and zlib.crc32(data) != listing.checksum:
        raise EmbeddingCorrupt(f"checksum of transfer {ref.transfer_id} differs")
