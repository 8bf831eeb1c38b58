"""Memory of one fetched embedding that the engine's workers map: a file of ours, or a block that an encoder wrote."""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass

import numpy as np
import torch

from transfer import HeldBlock
from transfer.dtypes import DTYPE_BYTES
from transfer.errors import Closed
from transfer.owned_files import SHARED_MEMORY
from transfer.tensors import buffer_to_tensor, empty_buffer


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

    def describe(self, key: str, shape: tuple[int, int], dtype: str) -> StoredEmbedding:
        """What a worker needs to load it."""
        return StoredEmbedding(key, str(SHARED_MEMORY / self.name), 0, shape, dtype, is_lent=False)

    def _unlink(self) -> None:
        (SHARED_MEMORY / self.name).unlink(missing_ok=True)


class LentBlock:
    """An embedding left where its encoder on this host wrote it; `discard` gives the block back."""

    def __init__(self, held: HeldBlock) -> None:
        self._held = held

    def describe(self, key: str, shape: tuple[int, int], dtype: str) -> StoredEmbedding:
        """What a worker needs to load it."""
        return StoredEmbedding(key, self._held.path, self._held.offset, shape, dtype, is_lent=True)

    def discard(self) -> None:
        """The encoder may use the memory again; idempotent."""
        self._held.close()


@dataclass(frozen=True, slots=True)
class StoredEmbedding:
    """Where a worker finds one embedding: a file, the first byte in it, shape [num_tokens, width] and wire dtype name.

    `is_lent`: the memory will be used again for other embeddings.
    """

    key: str
    path: str
    offset: int
    shape: tuple[int, int]
    dtype: str
    is_lent: bool

    def load(self, device: torch.device) -> torch.Tensor:
        """The embedding on `device`; on the host itself the mapped memory without a copy, unless it is lent.

        Raises:
            FileNotFoundError: the owner dropped it; it does so only when no step can still need it.
        """
        num_bytes = self.shape[0] * self.shape[1] * DTYPE_BYTES[self.dtype]
        page_offset = self.offset % mmap.ALLOCATIONGRANULARITY
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Copy-on-write: whatever a model did to its embeddings in place would stay its own.
            mapped = mmap.mmap(
                descriptor, page_offset + num_bytes, access=mmap.ACCESS_COPY, offset=self.offset - page_offset
            )
        finally:
            os.close(descriptor)
        memory = memoryview(mapped)[page_offset:]
        if self.is_lent and device.type == "cpu":
            own = empty_buffer(num_bytes)
            np.copyto(np.frombuffer(own, np.uint8), np.frombuffer(memory, np.uint8))
            memory = own
        return buffer_to_tensor(memory, self.shape, self.dtype).to(device)
