"""Finished embeddings kept by content key, least recently used first to go."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from transfer import HostEmbedding


class _Loan:
    """Tells whether transfers still need a memory: they share one view of it, which lives as long as they do."""

    def __init__(self) -> None:
        self._view: weakref.ref[np.ndarray] | None = None
        self._lock = threading.Lock()

    @property
    def is_out(self) -> bool:
        """Whether a lease, or a frame that is still being sent, refers to the view."""
        return self._view is not None and self._view() is not None

    def take(self, memory: memoryview) -> memoryview:
        with self._lock:
            view = self._view() if self._view is not None else None
            if view is None:
                view = np.frombuffer(memory, np.uint8)
                self._view = weakref.ref(view)
            return view.data


@dataclass(frozen=True, slots=True, eq=False)
class ArenaEmbedding(HostEmbedding):
    """One that `EmbeddingServer.place` put into the arena, where new ones need the room."""

    _loan: _Loan = field(default_factory=_Loan, init=False)

    @property
    def is_lent(self) -> bool:
        """Whether a transfer still needs its memory, so that to forget the embedding makes no room."""
        return self._loan.is_out

    def lend(self) -> memoryview:
        """Its memory, for a transfer."""
        return self._loan.take(self.memory)


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
                self._drop(next(iter(self._entries)))

    def make_room(self) -> bool:
        """Give up the least recently used entry that only the cache keeps in the arena; False when there is none."""
        with self._lock:
            for key, embedding in self._entries.items():
                if isinstance(embedding, ArenaEmbedding) and not embedding.is_lent:
                    self._drop(key)
                    return True
            return False

    def _drop(self, key: str) -> None:
        self._held_bytes -= self._entries.pop(key).nbytes
