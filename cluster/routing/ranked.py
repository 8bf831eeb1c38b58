"""The base of the routers: a policy ranks the replicas by name, and the first of them that has room takes the call."""

from __future__ import annotations

from abc import abstractmethod

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class RankedRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Offers a call to the replicas in the order of `rank`.

    Calls are placed first come, first served, so that none can be left behind: of calls that wait at the same moment,
    one may get the replica that another one prefers.
    """

    @abstractmethod
    def rank(self, names: list[str], pending: PendingRequest | None) -> list[str]:
        """The replicas' names, best first."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Without this Serve asks again at once, in a loop that lets nothing else on its thread run.
            pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[name]] for name in self.rank(sorted(by_name), pending_request)]
