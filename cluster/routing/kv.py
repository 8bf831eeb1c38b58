"""Least KV cache, for decode: by the tokens that the sequences hold, and never a full one while another has room.

What a sequence takes soon matters as much as what it takes now, and a step's time grows with the sequences as well as
with their caches: each is counted with its prompt and an answer of middling length, and what the cache holds beyond
that, because answers are longer, by report.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.serve.request_router import PendingRequest

from cluster.routing.costs import decode_cost
from cluster.routing.counted import CountedRouter
from cluster.routing.ranked import Reports
from cluster.routing.reports import EngineReport, engine_report
from cluster.routing.senders import SENDER
from cluster.routing.turns import rank_by
from llm_workers.messages import DecodeRequest

NEARLY_FULL = 0.9
"""Part of a KV cache beyond which the engine may have to preempt sequences."""


class LeastKVRouter(CountedRouter):
    """Prefers the replica whose sequences hold the fewest tokens."""

    def cost(self, pending: PendingRequest) -> float:
        request = pending.args[0] if pending.args else None
        return decode_cost(request) if isinstance(request, DecodeRequest) else 0.0

    def rank(self, names: list[str], reports: Reports, pending: PendingRequest | None) -> list[str]:
        read = {name: engine_report(stats) for name, stats in reports.items()}
        self._ledger.keep(names)
        self._ledger.report(
            {name: report.cost_beside(SENDER) + report.uncounted_tokens for name, report in read.items()}
        )
        loads = {name: KVLoad(self._ledger.load(name), read[name]) for name in names}
        return rank_by(names, lambda name: loads[name].rank, self._turn_of(pending))


@dataclass(frozen=True, slots=True)
class KVLoad:
    """The tokens that a replica's sequences hold or soon will, and what it said itself."""

    tokens: float
    report: EngineReport

    @property
    def rank(self) -> tuple[bool, float]:
        """Full ones behind all others, then by tokens."""
        capacity = self.report.kv_cache_tokens
        full = self.report.kv_cache_use >= NEARLY_FULL or (bool(capacity) and self.tokens >= NEARLY_FULL * capacity)
        return full, self.tokens
