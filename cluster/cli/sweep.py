"""Removes what workers that were killed left in shared memory; apart, so that it needs neither Ray nor vLLM."""

from __future__ import annotations

from llm_workers.embedding_store import sweep_dead_owners
from transfer.channels.arena import sweep_dead_arenas


def sweep_shared_memory() -> int:
    """Remove their segments in /dev/shm, those of live workers stay; how many there were."""
    return sweep_dead_owners() + sweep_dead_arenas()
