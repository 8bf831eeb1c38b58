"""Workers count from their start; the exporter must be told what came since the last time, and never anything twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from cluster.metrics import registry
from cluster.metrics.follower import Reading, StatsFollower
from cluster.metrics.instruments import Instruments


class Recorded(Instruments):
    """Instruments that keep what Ray's would be told."""

    def __init__(self) -> None:
        super().__init__("encoder", "r")
        self.counted: Counter[tuple[str, tuple[Any, ...]]] = Counter()
        self.gauges: dict[str, float] = {}

    def count(self, metric: registry.Metric, amount: float = 1, labels: Mapping[str, str] = {}) -> None:
        self.counted[metric.name, tuple(sorted(labels.items()))] += int(amount)

    def set(self, metric: registry.Metric, value: float, labels: Mapping[str, str] = {}) -> None:
        self.gauges[metric.name] = value


def test_totals_become_growth_and_gauges_stay() -> None:
    instruments = Recorded()
    totals = {"released": 3.0, "expired": 1.0, "held": 5.0}

    def read() -> list[Reading]:
        return [
            Reading(registry.LEASES_ENDED, totals["released"], {"how": "released"}),
            Reading(registry.LEASES_ENDED, totals["expired"], {"how": "expired"}),
            Reading(registry.LEASES, totals["held"]),
        ]

    follower = StatsFollower(instruments, read)
    follower.export()
    totals |= {"released": 7.0, "held": 2.0}
    follower.close()  # which exports a last time
    assert instruments.counted == {
        ("triptych_leases_ended_total", (("how", "released"),)): 7,
        ("triptych_leases_ended_total", (("how", "expired"),)): 1,
    }
    assert instruments.gauges == {"triptych_leases": 2.0}
    follower.close()


def test_a_metric_of_another_kind_is_refused() -> None:
    with pytest.raises(AssertionError, match="is a gauge"):
        Instruments("encoder", "r").count(registry.LEASES)
