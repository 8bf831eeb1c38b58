"""Least outstanding requests, counted by this router itself: for engines whose requests are all alike.

Serve's own choice compares queue lengths that it remembers for seconds; after a peak it sends everything to one of two
replicas. What this router has sent and not seen end, it knows exactly.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest

from cluster.routing.counted import CountedRouter
from cluster.routing.ranked import Reports
from cluster.routing.turns import rank_by


class LeastOutstandingRouter(CountedRouter):
    """Prefers the replica with the fewest requests under way; equal ones take turns."""

    def cost(self, pending: PendingRequest) -> float:
        return 1.0

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        self._ledger.keep(names)
        return rank_by(names, self._ledger.load, self._turn_of(pending))
