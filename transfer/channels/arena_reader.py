"""Reads other processes' arenas on this host: copies out of a block, or holds a block where it is.

A copy is guarded like a sequence lock: the block's header must name the block before and after it. A hold is a read
lock on the block's bytes, taken before the header is looked at; the owner clears the header first and looks for locks
afterwards, so that one of the two sees the other.
"""

import contextlib
import fcntl
import mmap
import os
import re
import threading
import weakref
from collections import Counter, OrderedDict, deque

from transfer.channels.arena import HEADER_BYTES, LOCK, PREFIX, block_header
from transfer.channels.board import BOARD_BYTES, Listing, find_listing
from transfer.errors import EmbeddingExpired, EncoderLost, ProtocolError
from transfer.owned_files import SHARED_MEMORY
from transfer.tensors import copy_bytes

_REGION = re.compile(re.escape(PREFIX) + r"\d{1,10}-[0-9a-f]{16}")
_MAX_MAPPED = 64


class _Mapped:
    """One arena, mapped for reading, and the blocks of it that are held; its descriptor lasts as long as it does."""

    def __init__(self, region: str, descriptor: int, memory: mmap.mmap) -> None:
        self.region = region
        self.memory = memory
        self.view = memoryview(memory)
        self.descriptor = descriptor
        self._lock = threading.Lock()
        self._holds: Counter[tuple[int, int]] = Counter()
        self.dropped: deque[tuple[int, int]] = deque()
        weakref.finalize(self, os.close, descriptor).atexit = False

    def check(self, offset: int, num_bytes: int, block_id: str) -> None:
        """Raise ProtocolError unless such a block can lie there; one without an id would look like one that is free."""
        if not block_id or offset < BOARD_BYTES + HEADER_BYTES or offset + num_bytes > len(self.memory):
            raise ProtocolError(f"{num_bytes} bytes at {offset} leave the arena of {len(self.memory)} bytes")

    def names(self, offset: int, header: bytes) -> bool:
        """Whether the block before `offset` is in use under this header."""
        return self.memory[offset - HEADER_BYTES : offset] == header

    def hold(self, offset: int, num_bytes: int) -> None:
        """Lock a block once more, header included."""
        with self._lock:
            self._drop_queued()
            block = (offset, num_bytes)
            self._holds[block] += 1
            if self._holds[block] == 1:
                self._set_lock(fcntl.F_RDLCK, block)

    def drop_queued(self) -> None:
        """Undo each `hold` that is in `dropped`."""
        with self._lock:
            self._drop_queued()

    def _drop_queued(self) -> None:
        while self.dropped:
            block = self.dropped.popleft()
            self._holds[block] -= 1
            if not self._holds[block]:
                del self._holds[block]
                self._set_lock(fcntl.F_UNLCK, block)

    def _set_lock(self, kind: int, block: tuple[int, int]) -> None:
        offset, num_bytes = block
        lock = LOCK.pack(kind, os.SEEK_SET, offset - HEADER_BYTES, HEADER_BYTES + num_bytes, 0)
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, lock)


class HeldBlock:
    """A block of an arena that its owner cannot reuse until this is closed or dropped, whatever becomes of its lease.

    Attributes:
        offset: first byte of the payload in that file.
        memory: the payload, read-only.
    """

    def __init__(self, mapped: _Mapped, offset: int, num_bytes: int, block_id: str) -> None:
        """Raises EmbeddingExpired when the block is not in use under this id any more."""
        self.offset = offset
        self._mapped = mapped
        self._holds: list[tuple[int, int]] = []  # the one that is left to undo; a list, since only one can pop it
        mapped.hold(offset, num_bytes)
        self._holds.append((offset, num_bytes))
        if not mapped.names(offset, block_header(block_id)):
            self.close()
            raise EmbeddingExpired("the lease ended before the embedding was read")
        self.memory = mapped.view[offset : offset + num_bytes]

    @property
    def path(self) -> str:
        """Opens the arena's file in this process and its children, also when the owner has died or removed it."""
        return f"/proc/{os.getpid()}/fd/{self._mapped.descriptor}"

    def close(self) -> None:
        """Let go; idempotent. `memory` must not be read any more."""
        with contextlib.suppress(IndexError):
            self._mapped.dropped.append(self._holds.pop())
            self._mapped.drop_queued()

    def __del__(self) -> None:
        # Runs anywhere, so it takes no lock, and the next hold or close does the rest.
        self._mapped.dropped.extend(self._holds)


class ArenaReader:
    """Maps arenas when first met, and forgets those whose owner removed them. Thread-safe."""

    def __init__(self) -> None:
        self._mapped: OrderedDict[str, _Mapped] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, region: str, transfer_id: str) -> Listing | None:
        """What the board of an arena says of a transfer; None also when the arena is gone."""
        mapped = self._mapped.get(region)
        return None if mapped is None else find_listing(mapped.memory, transfer_id)

    def copy(self, region: str, offset: int, block_id: str, target: memoryview) -> None:
        """Fill `target` from a block. Raises EncoderLost, EmbeddingExpired or ProtocolError, as `map`."""
        mapped = self.map(region)
        mapped.check(offset, target.nbytes, block_id)
        header = block_header(block_id)
        in_use_before = mapped.names(offset, header)
        copy_bytes(mapped.view[offset : offset + target.nbytes], target)
        if not (in_use_before and mapped.names(offset, header)):
            raise EmbeddingExpired("the lease ended while the embedding was read")

    def hold(self, region: str, offset: int, num_bytes: int, block_id: str) -> HeldBlock:
        """Keep a block where it is. Raises EncoderLost, EmbeddingExpired or ProtocolError, as `map`."""
        mapped = self.map(region)
        mapped.check(offset, num_bytes, block_id)
        return HeldBlock(mapped, offset, num_bytes, block_id)

    def map(self, region: str) -> _Mapped:
        """The arena of that name. Raises ProtocolError for what is no name of one, EncoderLost when it is gone."""
        with self._lock:
            mapped = self._mapped.get(region)
            if mapped is None:
                mapped = _map(region)
                self._forget_removed()
                self._mapped[region] = mapped
            self._mapped.move_to_end(region)
            return mapped

    def close(self) -> None:
        """Forget every mapping; held blocks stay held."""
        with self._lock:
            self._mapped.clear()

    def _forget_removed(self) -> None:
        # A mapping keeps the memory of a removed file alive, so those of encoders that ended must go. They are dropped,
        # not closed: a held block, or the traceback of an error that somebody keeps, may still refer to one.
        for region in list(self._mapped):
            if not (SHARED_MEMORY / region).exists():
                del self._mapped[region]
        while len(self._mapped) >= _MAX_MAPPED:
            self._mapped.popitem(last=False)


def _map(region: str) -> _Mapped:
    if not _REGION.fullmatch(region):
        raise ProtocolError(f"{region!r} is not the name of an arena")
    try:
        descriptor = os.open(SHARED_MEMORY / region, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise EncoderLost(f"arena {region} cannot be opened: {error.strerror}") from error
    try:
        # Populated: a page fault for every page of the first reads costs more than the copies themselves.
        memory = mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        if len(memory) <= BOARD_BYTES:
            raise ValueError("too short")
    except (OSError, ValueError) as error:
        os.close(descriptor)
        raise EncoderLost(f"arena {region} cannot be mapped: {error}") from error
    return _Mapped(region, descriptor, memory)
