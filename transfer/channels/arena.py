"""A fixed piece of POSIX shared memory that one encoder process owns, and blocks in it that live by reference.

    arena:  board (see `board`) | blocks
    block:  64 bytes of header (its id, zeros once it is free) | payload | padding to 4096

A block is free when nothing in this process refers to its memory any more (not a lease, not the cache, not a frame that
is still being sent) and no reader holds it. Readers in other processes hold a block by a read lock on its bytes of the
file, which the kernel drops when they die; or they only look at the header before and after they copy (see
`arena_reader`).

An arena lives as long as its owner (see `owned_files`).
"""

import bisect
import fcntl
import itertools
import mmap
import os
import secrets
import struct
import sys
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np

from transfer.channels.board import BOARD_BYTES, Board
from transfer.owned_files import SHARED_MEMORY, create_owned, sweep_unowned

PREFIX = "triptych-arena-"
HEADER_BYTES = 64
_ALIGNMENT = 4096
_BLOCK_ID_BYTES = 16
LOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


def block_header(block_id: str) -> bytes:
    """What stands before the payload of a block while it is in use."""
    return bytes.fromhex(block_id).ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Writable memory in an arena, from byte `offset` of its file; in use for as long as `memory` is referred to."""

    memory: memoryview
    offset: int
    block_id: str


class Arena:
    """Owner of one arena with room for `num_bytes`. Thread-safe; `close` is idempotent."""

    _process_ends = staticmethod(sys.is_finalizing)  # found here also when this module has been cleared already

    def __init__(self, num_bytes: int) -> None:
        """Reserve the memory at once. Raises OSError when /dev/shm has no room for it."""
        sweep_dead_arenas()
        self._descriptor, self.name = create_owned(PREFIX)
        end = BOARD_BYTES + num_bytes - num_bytes % _ALIGNMENT
        try:
            os.posix_fallocate(self._descriptor, 0, end)
            # Mapped at once as well, rather than by a page fault for every page of the first embeddings.
            self._memory = mmap.mmap(self._descriptor, end, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError:
            self._remove()
            raise
        self.board = Board(self._memory)
        self._base_address = _address(memoryview(self._memory))
        self._lock = threading.Lock()
        # Free ranges as (start, end), sorted and never touching; `_freed` is what finalizers gave back since, and
        # `_quarantine` what a reader still held when it was looked at.
        self._free: list[tuple[int, int]] = [(BOARD_BYTES, end)]
        self._freed: deque[tuple[int, int]] = deque()
        self._quarantine: list[tuple[int, int]] = []
        # By offset of its payload: a block's id, and what calls when nothing refers to its memory any more.
        self._blocks: dict[int, tuple[str, weakref.ref[object]]] = {}
        self._ids_prefix = secrets.token_hex(_BLOCK_ID_BYTES // 2)
        self._num_blocks = itertools.count()
        self._closed = False

    def allocate(self, num_bytes: int) -> Block | None:
        """A block for `num_bytes`, its content undefined; None when there is no room."""
        size = -(-(HEADER_BYTES + num_bytes) // _ALIGNMENT) * _ALIGNMENT
        start = self._take(size)
        if start is None:
            return None
        offset, block_id = start + HEADER_BYTES, f"{self._ids_prefix}{next(self._num_blocks):016x}"
        memory = np.frombuffer(self._memory, np.uint8, num_bytes, offset)
        self._memory[start:offset] = block_header(block_id)
        self._blocks[offset] = (block_id, weakref.ref(memory, partial(self._give_back, start, start + size)))
        return Block(memory.data, offset, block_id)

    def find(self, buffer: memoryview) -> tuple[int, str] | None:
        """Offset and id of the block whose payload `buffer` begins; None when it is no memory of this arena."""
        offset = _address(buffer) - self._base_address
        block = self._blocks.get(offset)
        return None if block is None else (offset, block[0])

    @property
    def num_free_bytes(self) -> int:
        """Bytes in no block."""
        with self._lock:
            self._collect()
            return sum(end - start for start, end in self._free)

    def close(self) -> None:
        """Remove the file. Memory that is still referred to stays valid until it is dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._free.clear()
            self._remove()

    def _remove(self) -> None:
        (SHARED_MEMORY / self.name).unlink(missing_ok=True)
        os.close(self._descriptor)

    def _give_back(self, start: int, end: int, memory: "weakref.ref[object]") -> None:
        # Runs wherever the last reference is dropped, also within `_take`, so it does not wait for the lock. The header
        # goes before the block can be reused. A process that ends reuses none, and its arena is swept.
        if self._process_ends():
            return
        self._memory[start : start + HEADER_BYTES] = bytes(HEADER_BYTES)
        self._blocks.pop(start + HEADER_BYTES, None)
        self._freed.append((start, end))
        if self._lock.acquire(blocking=False):
            try:
                self._collect()  # here rather than by an encoder that has finished an embedding
            finally:
                self._lock.release()

    def _take(self, size: int) -> int | None:
        with self._lock:
            if self._closed:
                return None
            self._collect()
            for index, (start, end) in enumerate(self._free):
                if end - start >= size:
                    self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                    return start
        return None

    def _collect(self) -> None:
        if self._closed:
            return
        waiting, self._quarantine = self._quarantine, []
        while self._freed:
            waiting.append(self._freed.popleft())
        for start, end in waiting:
            if self._is_held(start, end):
                self._quarantine.append((start, end))
            else:
                self._merge(start, end)

    def _is_held(self, start: int, end: int) -> bool:
        asked = LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(LOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def _merge(self, start: int, end: int) -> None:
        index = bisect.bisect(self._free, (start, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))


def sweep_dead_arenas() -> int:
    """Remove arenas whose owner is dead; returns how many."""
    return sweep_unowned(PREFIX)


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
