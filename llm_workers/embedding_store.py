"""Fetched embeddings in host shared memory: written once per host, read by every worker of the engine.

The scheduler process owns an `EmbeddingStore`; workers map what it holds by `StoredEmbedding`. Entries are pinned by
the requests that need them. Of the unpinned ones, those in memory of ours stay, least recently used first to go, while
the byte budget lasts; a block that an encoder on this host lends goes back as soon as no step can still read it.

    new_segment -- filled by the fetch --+-- put --> resident (pinned by >= 1 request) -- unpin --> resident
         |                               |                                                            |
         +-- discard     a LentBlock ----+                         absent <-- over budget, or lent ---+
"""

from __future__ import annotations

import itertools
import os
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from llm_workers.embedding_segment import LentBlock, Segment, StoredEmbedding
from transfer.owned_files import SHARED_MEMORY, create_owned, part_name, sweep_unowned

PREFIX = "triptych-store-"
# A step that lists an entry may still be on its way to a worker when later steps are built.
STEPS_IN_FLIGHT = 16


@dataclass(slots=True)
class _Entry:
    memory: Segment | LentBlock
    stored: StoredEmbedding
    num_bytes: int
    last_step: int
    pins: set[str] = field(default_factory=set)
    all_loaded: bool = True


class EmbeddingStore:
    """Owner of the segments. Not thread-safe: the scheduler's thread alone calls it."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes`: kept at most, except that what a request or a step needs stays."""
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._held_bytes = 0
        self._step = 0
        self._numbers = itertools.count()
        sweep_dead_owners()
        self._descriptor, self.name = create_owned(PREFIX)
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries in our own memory, pinned or not."""
        return self._held_bytes

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def new_segment(self) -> Segment:
        """Memory for one embedding, to be filled and then `put`, or discarded."""
        return Segment(part_name(self.name, next(self._numbers)))

    def put(
        self,
        key: str,
        memory: Segment | LentBlock,
        shape: tuple[int, int],
        dtype: str,
        num_bytes: int,
        pins: Collection[str] = (),
    ) -> None:
        """Take over a filled segment or a lent block as the embedding [num_tokens, width] of `key`.

        It is pinned for the requests `pins`. A key that is there already stays as it is, and the memory goes.
        """
        if key in self._entries:
            memory.discard()
        else:
            own_bytes = 0 if isinstance(memory, LentBlock) else num_bytes
            self._entries[key] = _Entry(memory, memory.describe(key, shape, dtype), own_bytes, self._step)
            self._held_bytes += own_bytes
        for request_id in pins:
            self.pin(key, request_id)
        self._evict()

    def pin(self, key: str, request_id: str) -> None:
        """Keep `key` for as long as `request_id` needs it."""
        self._entries[key].pins.add(request_id)
        self._entries.move_to_end(key)

    def unpin(self, key: str, request_id: str, all_loaded: bool = False) -> None:
        """End of that need; idempotent. `all_loaded`: no step that loads `key` for this request is on its way."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.pins.discard(request_id)
            entry.all_loaded = entry.all_loaded and all_loaded
            self._evict()

    def list_for_step(self, keys: list[str]) -> list[StoredEmbedding]:
        """The entries that the step being built will load; they outlive it."""
        self._step += 1
        listed = []
        for key in keys:
            entry = self._entries[key]
            entry.last_step = self._step
            listed.append(entry.stored)
        self._evict()
        return listed

    def close(self) -> None:
        """Remove every segment; idempotent."""
        if self._closed:
            return
        self._closed = True
        for key in list(self._entries):
            self._remove(key)
        (SHARED_MEMORY / self.name).unlink(missing_ok=True)
        os.close(self._descriptor)

    def _evict(self) -> None:
        for key, entry in list(self._entries.items()):
            is_lent = isinstance(entry.memory, LentBlock)
            if entry.pins or (not is_lent and self._held_bytes <= self._budget_bytes):
                continue
            if (is_lent and entry.all_loaded) or entry.last_step + STEPS_IN_FLIGHT < self._step:
                self._remove(key)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key)
        self._held_bytes -= entry.num_bytes
        entry.memory.discard()


def sweep_dead_owners() -> int:
    """Remove what stores of dead processes left behind; returns how many files."""
    return sweep_unowned(PREFIX)
