"""What `triptych top` looks at: the replicas' own counts, and latencies from Ray's metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cluster.metrics import registry
from cluster.metrics.registry import Metric
from cluster.metrics.scrape import Samples, ScrapeFailed, scrape
from configs.environment import read_environment

_TIMEOUT_S = 10.0


class ServiceUnreachable(Exception):
    """No Triptych service answers; the message says where and why."""


@dataclass(frozen=True)
class Look:
    """One moment of a service.

    Attributes:
        moment: seconds of the monotonic clock.
        stages: what each replica of each stage says of itself, as `/triptych/status` gives it.
        samples: Ray's metrics; None where they cannot be reached from here, with the reason in `problem`.
    """

    url: str
    moment: float
    topology: str
    stages: Mapping[str, Sequence[Mapping[str, Any]]]
    samples: Samples | None
    problem: str | None


def look(url: str) -> Look:
    """The service now.

    Raises:
        ServiceUnreachable: it does not answer, or is no Triptych service.
    """
    base = url.rstrip("/").removesuffix("/v1")
    try:
        headers = read_environment().authorization
        status = httpx.get(f"{base}/triptych/status", timeout=_TIMEOUT_S, headers=headers).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceUnreachable(f"no Triptych service answers at {base}: {error}") from error
    samples, problem = None, None
    try:
        samples = scrape(status["metrics_endpoints"], _TIMEOUT_S)
    except ScrapeFailed as error:
        problem = str(error)
    return Look(base, time.monotonic(), status["topology"], status["stages"], samples, problem)


def quantile(metric: Metric, part: float, labels: Mapping[str, str], before: Samples, now: Samples) -> float:
    """The quantile `part` of what a histogram took between two scrapes, linear within a bucket; nan when nothing.

    As Prometheus' `histogram_quantile`: in the bucket without an upper bound its lower bound is the answer.
    """
    counts: dict[float, float] = {}
    name = f"{metric.exported_name}_bucket"
    for samples, sign in ((now, 1.0), (before, -1.0)):
        for sample in samples.of(name, labels):
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0.0) + sign * sample.value
    total = counts.get(math.inf, 0.0)
    if total <= 0:
        return math.nan
    below, below_count = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if count >= part * total:
            if math.isinf(bound):
                return below
            return below + (bound - below) * (part * total - below_count) / (count - below_count)
        below, below_count = bound, count
    return math.nan


def rate(before: Look, now: Look, name: str, labels: Mapping[str, str]) -> float:
    """Growth per second of a series between two looks; nan without metrics."""
    if before.samples is None or now.samples is None:
        return math.nan
    grown = now.samples.total(name, labels) - before.samples.total(name, labels)
    return max(0.0, grown) / (now.moment - before.moment)


def modalities(now: Look) -> list[str]:
    """The kinds of requests that this service has answered so far."""
    if now.samples is None:
        return []
    samples = now.samples.of(registry.REQUESTS.exported_name, {})
    return sorted({sample.labels["modality"] for sample in samples})
