"""Memory of one fetched embedding: a file in host shared memory that the engine's workers map."""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass

import torch

from transfer.errors import Closed
from transfer.owned_files import SHARED_MEMORY
from transfer.tensors import buffer_to_tensor


class Segment:
    """The writing end. Made by the scheduler, filled by the thread that fetches, then kept or discarded."""

    def __init__(self, name: str) -> None:
        """`name`: of a file under /dev/shm, which appears with `allocate`."""
        self.name = name
        self._lock = threading.Lock()
        self._discarded = False

    def allocate(self, num_bytes: int) -> memoryview:
        """The segment's memory, writable, all of it reserved now: a write later must not meet a full file system.

        Raises:
            OSError: /dev/shm has no room.
            Closed: the segment was discarded.
        """
        with self._lock:
            if self._discarded:
                raise Closed("nobody waits for this embedding any more")
            descriptor = os.open(SHARED_MEMORY / self.name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, num_bytes)
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # one call instead of a page fault for every page
                return memoryview(mmap.mmap(descriptor, num_bytes, flags=flags))
            except OSError:
                self._unlink()
                raise
            finally:
                os.close(descriptor)

    def discard(self) -> None:
        """Remove the file; idempotent. Who has mapped it keeps its memory."""
        with self._lock:
            self._discarded = True
            self._unlink()

    def _unlink(self) -> None:
        (SHARED_MEMORY / self.name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class StoredEmbedding:
    """Where a worker finds one embedding: file name under /dev/shm, shape [num_tokens, width] and wire dtype name."""

    key: str
    name: str
    shape: tuple[int, int]
    dtype: str

    def load(self, device: torch.device) -> torch.Tensor:
        """The embedding on `device`; on the host itself the mapped memory, without a copy.

        Raises:
            FileNotFoundError: the owner dropped it; it does so only when no step can still need it.
        """
        descriptor = os.open(SHARED_MEMORY / self.name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Copy-on-write: whatever a model did to its embeddings in place would stay its own.
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
        return buffer_to_tensor(memoryview(mapped), self.shape, self.dtype).to(device)
