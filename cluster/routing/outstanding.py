"""Least outstanding requests for the language model stages, counted by this router itself.

Serve's own choice compares queue lengths that it remembers for seconds; after a peak it sends everything to one of two
replicas. What this router has sent and not seen end, it knows exactly.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID

from cluster.routing.ranked import RankedRouter


class LeastOutstandingRouter(RankedRouter):
    """Prefers the replica with the fewest requests under way; equal ones take turns."""

    def initialize_state(self, **_: Any) -> None:
        """Called by Serve once, before the first choice."""
        self._under_way: dict[str, str] = {}
        self._turn = 0

    def rank(self, names: list[str], pending: PendingRequest | None) -> list[str]:
        self._turn += 1
        return rank_by_load(names, Counter(self._under_way.values()), self._turn)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._under_way[pending_request.metadata.internal_request_id] = replica_id.unique_id

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._under_way.pop(internal_request_id, None)


def rank_by_load(names: list[str], load: Counter[str], turn: int) -> list[str]:
    """The names by their load, least first; of equal ones the next in turn first."""
    start = turn % len(names) if names else 0
    rotated = names[start:] + names[:start]
    return sorted(rotated, key=lambda name: load[name])
