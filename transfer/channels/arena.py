"""A fixed piece of POSIX shared memory that one encoder process owns, and blocks in it that live by reference.

    block:  64 bytes of header (the transfer id, zeros once the block is free) | payload | padding to 4096

A block is free when nothing refers to its memory any more: not the lease, and not a frame that is still being sent.
Readers in other processes hold no reference; they find out that a block was freed by its header (see `shm_channel`).

An arena lives as long as its owner (see `owned_files`).
"""

import bisect
import mmap
import os
import threading
import weakref
from collections import deque

import numpy as np

from transfer.owned_files import SHARED_MEMORY, create_owned, sweep_unowned

PREFIX = "triptych-arena-"
HEADER_BYTES = 64
_ALIGNMENT = 4096


def block_header(transfer_id: str) -> bytes:
    """What stands before the payload of this transfer while the block is in use."""
    header = transfer_id.encode()
    assert 0 < len(header) <= HEADER_BYTES
    return header.ljust(HEADER_BYTES, b"\0")


class Arena:
    """Owner of one arena of `num_bytes`. Thread-safe; `close` is idempotent."""

    def __init__(self, num_bytes: int) -> None:
        """Reserve the memory at once. Raises OSError when /dev/shm has no room for it."""
        sweep_dead_arenas()
        self._descriptor, self.name = create_owned(PREFIX)
        try:
            os.posix_fallocate(self._descriptor, 0, num_bytes)
            # Mapped at once as well, rather than by a page fault for every page of the first embeddings.
            self._memory = mmap.mmap(self._descriptor, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError:
            self._remove()
            raise
        self._lock = threading.Lock()
        # Free ranges as (start, end), sorted and never touching; `_freed` is what finalizers gave back since.
        self._free: list[tuple[int, int]] = [(0, num_bytes - num_bytes % _ALIGNMENT)]
        self._freed: deque[tuple[int, int]] = deque()
        self._closed = False

    def store(self, transfer_id: str, payload: memoryview) -> tuple[memoryview, int] | None:
        """Copy `payload` into a block: its memory there and its offset in the arena; None when there is no room.

        The block lives as long as the returned memory is referred to.
        """
        size = -(-(HEADER_BYTES + payload.nbytes) // _ALIGNMENT) * _ALIGNMENT
        start = self._allocate(size)
        if start is None:
            return None
        offset = start + HEADER_BYTES
        block = np.frombuffer(self._memory, np.uint8, payload.nbytes, offset)
        np.copyto(block, np.frombuffer(payload, np.uint8))
        self._memory[start:offset] = block_header(transfer_id)
        weakref.finalize(block, _give_back, self._memory, self._freed, start, start + size).atexit = False
        return block.data, offset

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

    def _allocate(self, size: int) -> int | None:
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
        while self._freed and not self._closed:
            start, end = self._freed.popleft()
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


def _give_back(memory: mmap.mmap, freed: "deque[tuple[int, int]]", start: int, end: int) -> None:
    # Runs wherever the last reference is dropped, so it takes no lock. The header goes before the block can be reused.
    memory[start : start + HEADER_BYTES] = bytes(HEADER_BYTES)
    freed.append((start, end))
