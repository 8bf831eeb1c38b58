"""Least tokens to compute, for prefill: the queue of a replica and what of this prompt it has not computed before.

Both are counted in prompt tokens, so that a replica which holds the prefix wins by what that saves, and no longer than
its queue is shorter than that.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID

from cluster.routing.counted import CountedRouter
from cluster.routing.prefixes import PrefixMemory, prefix_blocks
from cluster.routing.ranked import Reports
from cluster.routing.reports import engine_report
from cluster.routing.turns import rank_by
from llm_workers.messages import PrefillRequest, Prompt


class LeastTokensRouter(CountedRouter):
    """Prefers the replica at which the prompt would be computed first."""

    def initialize_state(self, **_: Any) -> None:
        super().initialize_state()
        self._prefixes = PrefixMemory()

    def cost(self, pending: PendingRequest) -> float:
        prompt = _prompt_of(pending)
        return 0.0 if prompt is None else float(len(prompt.token_ids))

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        self._ledger.keep(names)
        self._prefixes.keep(names)
        self._ledger.report({name: engine_report(stats).unanswered_tokens for name, stats in reports.items()})
        prompt = _prompt_of(pending)
        blocks = [] if prompt is None else prefix_blocks(prompt)
        return rank_by(
            names,
            lambda name: self._ledger.load(name) - self._prefixes.num_held_tokens(name, blocks),
            self._next_turn(),
        )

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        super().on_request_routed(pending_request, replica_id, result)
        prompt = _prompt_of(pending_request)
        if prompt is not None:
            self._prefixes.sent(replica_id.unique_id, prefix_blocks(prompt))


def _prompt_of(pending: PendingRequest | None) -> Prompt | None:
    """The prompt of a prefill call; None for other calls, such as statistics."""
    if pending is not None and pending.args and isinstance(pending.args[0], PrefillRequest):
        return pending.args[0].prompt
    return None
