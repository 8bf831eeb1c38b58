"""How long the stages of a Triptych service waited and computed while something ran, by its own metrics."""

from __future__ import annotations

import time

import httpx

from cluster.cli.bench.results import StageTime
from cluster.metrics import registry
from cluster.metrics.scrape import MetricsExport, Samples, ScrapeFailed, scrape
from configs.environment import read_environment

_TIMEOUT_S = 10.0
_STAGES = ("encoder", "prefill", "decode")
_KINDS = ("queue", "compute")
_QUIET_INTERVALS = 1.25
_POLLS_PER_INTERVAL = 4
_SETTLE_S = 60.0


class StageTimes:
    """The difference between the metrics at two moments. A server that is no Triptych service has none."""

    def __init__(self, base_url: str) -> None:
        self._export = _export(base_url)
        self._before = self._read()

    def since_then(self) -> dict[str, StageTime]:
        """Mean times per stage since this object was made; empty when they cannot be had."""
        if self._before is None:
            return {}
        after = self._settled()
        if after is None:
            return {}
        times = {}
        for stage in _STAGES:
            number = _computed(after, stage) - _computed(self._before, stage)
            if number > 0:
                queue_s, compute_s = (_spent(after, stage, kind) - _spent(self._before, stage, kind) for kind in _KINDS)
                times[stage] = StageTime(queue_s / number, compute_s / number)
        return times

    def _settled(self) -> Samples | None:
        """The metrics once they have not changed for as long as a replica may keep news to itself."""
        deadline = time.monotonic() + _SETTLE_S
        samples = self._read()
        quiet_since = time.monotonic()
        quiet_s = _QUIET_INTERVALS * self._export.interval_s
        while samples is not None and time.monotonic() < min(quiet_since + quiet_s, deadline):
            time.sleep(self._export.interval_s / _POLLS_PER_INTERVAL)
            newer = self._read()
            if newer is not None and _work(newer) != _work(samples):
                quiet_since = time.monotonic()
            samples = newer
        return samples

    def _read(self) -> Samples | None:
        try:
            return scrape(self._export.endpoints, _TIMEOUT_S) if self._export.endpoints else None
        except ScrapeFailed:
            return None


def _work(samples: Samples) -> list[float]:
    """How much each stage has computed since its start."""
    return [_computed(samples, stage) for stage in _STAGES]


def _computed(samples: Samples, stage: str) -> float:
    """Items or requests."""
    return samples.total(f"{registry.COMPUTE_TIME.exported_name}_count", {"stage": stage})


def _spent(samples: Samples, stage: str, kind: str) -> float:
    return samples.total(registry.SPENT.exported_name, {"stage": stage, "kind": kind})


def _export(base_url: str) -> MetricsExport:
    nothing = MetricsExport([], 0.0)
    try:
        headers = read_environment().authorization
        answer = httpx.get(f"{base_url}/triptych/status", timeout=_TIMEOUT_S, headers=headers)
    except httpx.HTTPError:
        return nothing
    if answer.status_code != httpx.codes.OK:
        return nothing
    status = answer.json()
    if "metrics_endpoints" not in status:
        return nothing
    return MetricsExport(status["metrics_endpoints"], status["metrics_interval_s"])
