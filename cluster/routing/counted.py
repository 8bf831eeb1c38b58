"""The base of the routers of the language model stages: one that keeps account of the cost of the calls under way."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID

from cluster.routing.ledger import Ledger
from cluster.routing.ranked import RankedRouter


class CountedRouter(RankedRouter):
    """Counts `cost` of each call from the moment it is at a replica to its end."""

    def initialize_state(self, **_: Any) -> None:
        super().initialize_state()
        self._ledger = Ledger()

    @abstractmethod
    def cost(self, pending: PendingRequest) -> float:
        """What a call costs whoever takes it."""

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        super().on_request_routed(pending_request, replica_id, result)
        call_id = pending_request.metadata.internal_request_id
        self._ledger.place(call_id, replica_id.unique_id, self.cost(pending_request))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._ledger.end(internal_request_id)
