"""What a test adds to a vLLM worker: the memory that its process holds."""

from __future__ import annotations

import ctypes
import gc

import psutil


class Heap:
    """Mixed into vLLM's worker as its `worker_extension_cls`."""

    def held_bytes(self) -> int:
        """What belongs to this process alone, after the allocator has given back what is free.

        How much is free between the blocks of a heap depends on the order in which lengths came, and grows by steps.
        """
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(psutil.Process().memory_full_info().uss)
