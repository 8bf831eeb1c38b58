"""What replicas tell routers of their load, by Ray's `record_routing_stats`: typed on both sides of the plain table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

REPORT_PERIOD_S = 1.0
"""How often Ray asks. Routers know what they sent themselves; reports tell of what others did."""


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """One encoder replica.

    Attributes:
        pending_work: patches that wait or are computed, with the quadratic term of attention (`Encoder.work`).
        work_per_item: the mean since its start; items that it had cost nothing.
        num_taken: items since its start; as long as it is the same, nothing has come since the last report.
    """

    pending_work: float = 0.0
    work_per_item: float = 0.0
    num_taken: int = 0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One replica of an engine.

    Attributes:
        costs: of the calls that it has, as its router counts them (`cluster.routing.costs`), by sender.
        kv_cache_tokens: that the KV cache holds when it is full; 0: not known.
        kv_cache_use: part of it that is taken, 0 to 1.
        uncounted_tokens: in it beyond what `costs` counts, because answers are longer.
    """

    costs: Mapping[str, float] = field(default_factory=dict)
    kv_cache_tokens: int = 0
    kv_cache_use: float = 0.0
    uncounted_tokens: float = 0.0

    def cost_beside(self, sender: str) -> float:
        """Of the calls that others sent."""
        return sum(cost for name, cost in self.costs.items() if name != sender)


def to_stats(report: EncoderReport | EngineReport) -> dict[str, Any]:
    """As Ray carries it."""
    return asdict(report)


def encoder_report(stats: Mapping[str, Any]) -> EncoderReport:
    """What a replica said last; nothing yet: a replica without work.

    While an update rolls, replicas may be of another version: what only that one knows is left out.
    """
    return EncoderReport(**_known(EncoderReport, stats))


def engine_report(stats: Mapping[str, Any]) -> EngineReport:
    """As `encoder_report`."""
    return EngineReport(**_known(EngineReport, stats))


def _known(report: type[EncoderReport] | type[EngineReport], stats: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: stats[field.name] for field in fields(report) if field.name in stats}
