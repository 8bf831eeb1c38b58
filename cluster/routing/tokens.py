"""Least tokens to compute, for prefill: the queue of a replica and what of this prompt it has not computed before.

Both are counted in prompt tokens, so that a replica which holds the prefix wins by what that saves, and no longer than
its queue is shorter than that.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID

from cluster.routing.costs import prefill_cost
from cluster.routing.counted import CountedRouter
from cluster.routing.prefixes import PrefixMemory, prefix_blocks
from cluster.routing.ranked import Reports
from cluster.routing.reports import engine_report
from cluster.routing.senders import SENDER
from cluster.routing.turns import rank_by
from llm_workers.messages import PrefillRequest

MAX_QUEUED_TOKENS = "max_queued_tokens"


class LeastTokensRouter(CountedRouter):
    """Prefers the replica at which the prompt would be computed first; what is full comes last."""

    def initialize_state(self, **settings: Any) -> None:
        """Called by Serve with `MAX_QUEUED_TOKENS`, at which a replica takes no more."""
        super().initialize_state()
        self._prefixes = PrefixMemory()
        self._max_queued_tokens = float(settings[MAX_QUEUED_TOKENS])

    def cost(self, pending: PendingRequest) -> float:
        request = _request_of(pending)
        return 0.0 if request is None else prefill_cost(request)

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        self._ledger.keep(names)
        self._prefixes.keep(names)
        self._ledger.report({name: engine_report(stats).cost_beside(SENDER) for name, stats in reports.items()})
        request = _request_of(pending)
        blocks = [] if request is None else prefix_blocks(request.prompt)

        def rank_of(name: str) -> tuple[bool, float]:
            load = self._ledger.load(name)
            return load >= self._max_queued_tokens, load - self._prefixes.num_held_tokens(name, blocks)

        return rank_by(names, rank_of, self._turn_of(pending))

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        super().on_request_routed(pending_request, replica_id, result)
        request = _request_of(pending_request)
        if request is not None:
            self._prefixes.sent(replica_id.unique_id, prefix_blocks(request.prompt))


def _request_of(pending: PendingRequest | None) -> PrefillRequest | None:
    """What a prefill call is about; None for other calls, such as statistics."""
    if pending is not None and pending.args and isinstance(pending.args[0], PrefillRequest):
        return pending.args[0]
    return None
