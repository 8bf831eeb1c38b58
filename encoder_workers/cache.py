"""Finished embeddings kept by content key, least recently used first to go."""

from __future__ import annotations

import threading
from collections import OrderedDict

from transfer import HostEmbedding


class EmbeddingCache:
    """A byte-bounded cache of embeddings [num_tokens, width] in host memory. Thread-safe.

    An entry may be evicted while a lease still holds its memory; the memory then ends with the lease.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[str, HostEmbedding] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self.num_hits = 0
        self.num_misses = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries."""
        return self._held_bytes

    def get(self, key: str) -> HostEmbedding | None:
        """The embedding of this content, if it is here; counts as a use."""
        with self._lock:
            embedding = self._entries.get(key)
            if embedding is None:
                self.num_misses += 1
            else:
                self.num_hits += 1
                self._entries.move_to_end(key)
            return embedding

    def put(self, key: str, embedding: HostEmbedding) -> None:
        """Keep an embedding; one larger than the budget is not kept."""
        if embedding.nbytes > self._budget_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = embedding
            self._held_bytes += embedding.nbytes
            while self._held_bytes > self._budget_bytes:
                self._evict()

    def evict(self) -> bool:
        """Give up the least recently used entry; False when there is none."""
        with self._lock:
            return self._evict()

    def _evict(self) -> bool:
        if not self._entries:
            return False
        _, evicted = self._entries.popitem(last=False)
        self._held_bytes -= evicted.nbytes
        return True
