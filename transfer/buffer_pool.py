"""Memory for embeddings that arrive, used again once their tensors are dropped, since fresh pages are expensive."""

import threading
import weakref
from collections import deque

import numpy as np

from transfer.tensors import empty_buffer

_MIN_POOLED_BYTES = 32 * 1024
_STEPS_PER_DOUBLING = 4


class BufferPool:
    """Keeps at most `idle_bytes` of memory that nobody uses. Thread-safe."""

    def __init__(self, idle_bytes: int) -> None:
        self._idle_bytes = idle_bytes
        self._lock = threading.Lock()
        self._idle: list[memoryview] = []
        self._dropped: deque[memoryview] = deque()

    def allocate(self, num_bytes: int) -> memoryview:
        """Writable memory, its content undefined, used again when nothing refers to it any more."""
        if num_bytes < _MIN_POOLED_BYTES:
            return empty_buffer(num_bytes)
        size = _rounded(num_bytes)
        memory = self._take(size)
        if memory is None:
            memory = empty_buffer(size)
        array = np.frombuffer(memory, np.uint8, num_bytes)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array.data

    @property
    def num_idle_bytes(self) -> int:
        """Bytes kept for later."""
        try:
            with self._lock:
                return sum(memory.nbytes for memory in self._idle)
        finally:
            self._collect()

    def _take_back(self, memory: memoryview) -> None:
        # Runs wherever the last reference is dropped, also while this very thread has the lock, so it does not wait.
        self._dropped.append(memory)
        self._collect()

    def _take(self, size: int) -> memoryview | None:
        try:
            with self._lock:
                for index in reversed(range(len(self._idle))):
                    if self._idle[index].nbytes == size:
                        return self._idle.pop(index)
            return None
        finally:
            self._collect()

    def _collect(self) -> None:
        """Keep what was dropped, or let it go; whoever has the lock does it instead, once it has given that back."""
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                while self._dropped:
                    self._idle.append(self._dropped.popleft())
                held = sum(memory.nbytes for memory in self._idle)
                while held > self._idle_bytes:  # the oldest first
                    held -= self._idle.pop(0).nbytes
            finally:
                self._lock.release()


def _rounded(num_bytes: int) -> int:
    """Few distinct sizes, at most a quarter larger, so that different embeddings find each other's memory."""
    step = 1 << max(12, (num_bytes - 1).bit_length() - _STEPS_PER_DOUBLING.bit_length())
    return -(-num_bytes // step) * step
