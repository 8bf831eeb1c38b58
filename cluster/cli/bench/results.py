"""What came of a scenario: each request's times, and the figures that a report shows."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from configs.scenarios import Slo

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class RequestResult:
    """One request; times in seconds, `sent_s` since the scenario's start. Without `error` it was answered whole."""

    num_media: int
    sent_s: float
    ttft_s: float
    duration_s: float
    num_tokens: int
    error: str | None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None when there is only one."""
        return (self.duration_s - self.ttft_s) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    def keeps(self, slo: Slo) -> bool:
        """Whether it was answered whole and in time."""
        return self.error is None and self.ttft_s <= slo.ttft_s and (self.tpot_s or 0.0) <= slo.tpot_s


@dataclass(frozen=True)
class StageTime:
    """Mean seconds that a stage's work waited and was computed, by the service's own metrics."""

    queue_s: float
    compute_s: float


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario against one server.

    Attributes:
        left_out: why nothing was asked; None when it was.
    """

    name: str
    duration_s: float
    requests: tuple[RequestResult, ...]
    stages: Mapping[str, StageTime] = field(default_factory=dict)
    left_out: str | None = None

    @classmethod
    def of_none(cls, name: str, why: str) -> ScenarioResult:
        """A scenario that this server cannot be asked."""
        return cls(name, 0.0, (), left_out=why)

    @property
    def good(self) -> list[RequestResult]:
        """The requests that were answered whole."""
        return [request for request in self.requests if request.error is None]

    def ttfts_s(self) -> list[float]:
        """Times to first token of the answered requests."""
        return [request.ttft_s for request in self.good]

    def tpots_s(self) -> list[float]:
        """Times per output token of the answered requests."""
        return [request.tpot_s for request in self.good if request.tpot_s is not None]

    def goodput(self, slo: Slo) -> float:
        """Requests per second that kept the SLO."""
        return self._per_second(sum(request.keeps(slo) for request in self.requests))

    def errors(self) -> Counter[str]:
        """How many requests failed for which reason."""
        return Counter(request.error for request in self.requests if request.error is not None)

    def figures(self, slo: Slo) -> dict[str, float]:
        """The figures by name; percentiles are nan when no request was answered."""
        figures = {
            "requests": float(len(self.requests)),
            "errors": float(len(self.requests) - len(self.good)),
            "requests_per_s": self._per_second(len(self.good)),
            "goodput_per_s": self.goodput(slo),
        }
        for name, values in (("ttft", self.ttfts_s()), ("tpot", self.tpots_s())):
            for percent in PERCENTILES:
                figures[f"{name}_p{percent}_s"] = percentile(values, percent)
        return figures

    def _per_second(self, number: int) -> float:
        return number / self.duration_s if self.duration_s else 0.0

    def to_json(self, slo: Slo) -> dict[str, Any]:
        """All of it for a JSON file; what is not a number is null."""
        figures = {name: None if math.isnan(value) else value for name, value in self.figures(slo).items()}
        return {
            "name": self.name,
            "left_out": self.left_out,
            "duration_s": self.duration_s,
            **figures,
            "error_reasons": dict(self.errors()),
            "stages": {name: dataclasses.asdict(times) for name, times in self.stages.items()},
            "each": [dataclasses.asdict(request) for request in self.requests],
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between the two nearest values; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
