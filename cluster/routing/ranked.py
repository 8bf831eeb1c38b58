"""The base of the routers: a policy ranks the replicas by name, and the first of them that has room takes the call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cluster.routing.pauses import FailurePauses
from cluster.routing.turns import Turns

Reports = Mapping[str, Mapping[str, Any]]
"""By the replica's name: what it told last (`cluster.routing.reports`), empty before the first time."""


class RankedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Offers a call to the replicas in the order of `rank`; those that calls could not reach come last for a while.

    Serve itself leaves out replicas that died or drain. Calls are placed first come, first served, so that none can be
    left behind: of calls that wait at the same moment, one may get the replica that another one prefers.
    """

    def initialize_state(self, **_: Any) -> None:
        """Called by Serve once, before the first choice."""
        self._pauses = FailurePauses()
        self._turns = Turns()

    @abstractmethod
    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        """The replicas' names, best first."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Without this Serve asks again at once, in a loop that lets nothing else on its thread run.
            pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._pauses.keep(by_name)
        reports = {name: replica.routing_stats for name, replica in by_name.items()}
        ranked = self.rank(sorted(by_name), reports, pending_request)
        return [[by_name[name]] for name in sorted(ranked, key=self._pauses.is_paused)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._pauses.took(replica_id.unique_id)
        self._turns.end(pending_request.metadata.internal_request_id)

    def _turn_of(self, pending: PendingRequest | None) -> int:
        """By which replicas of equal cost take turns."""
        return 0 if pending is None else self._turns.of(pending.metadata.internal_request_id)

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_unavailable(replica_id)
        self._pauses.failed(replica_id.unique_id)
