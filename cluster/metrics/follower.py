"""Carries a worker's own counts to the exporter, once a second, so that workers need not know of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.metrics.instruments import Instruments
from cluster.metrics.registry import Metric

_PERIOD_S = 1.0
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a metric: of a counter its total since the worker's start."""

    metric: Metric
    value: float
    labels: dict[str, str] = field(default_factory=dict)


class StatsFollower:
    """Reads and exports until `close`, which exports a last time and is idempotent."""

    def __init__(self, instruments: Instruments, read: Callable[[], Sequence[Reading]]) -> None:
        """Args: `read` gives the worker's present readings; called on this object's own thread."""
        self._instruments = instruments
        self._read = read
        self._totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triptych-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            last = self._stop.wait(_PERIOD_S)
            self.export()
            if last:
                return

    def export(self) -> None:
        """Export what has changed since the last time."""
        for reading in self._read():
            if reading.metric.kind == "gauge":
                self._instruments.set(reading.metric, reading.value, reading.labels)
                continue
            key = (reading.metric.name, tuple(sorted(reading.labels.items())))
            self._instruments.count(reading.metric, reading.value - self._totals.get(key, 0), reading.labels)
            self._totals[key] = reading.value
