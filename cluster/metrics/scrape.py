"""Reads the metrics that Ray's nodes export, as Prometheus does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIXES = ("ray_triptych_", "ray_vllm_")


class ScrapeFailed(Exception):
    """An endpoint could not be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class MetricsExport:
    """The URLs at which a cluster exports its metrics, and the seconds after which what is counted shows there."""

    endpoints: list[str]
    interval_s: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series."""

    name: str
    labels: Mapping[str, str]
    value: float


class Samples:
    """What one scrape found."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            self._by_name.setdefault(sample.name, []).append(sample)

    @property
    def names(self) -> set[str]:
        """The series that there are."""
        return set(self._by_name)

    def of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        """The samples of a series that have these labels."""
        return [
            sample
            for sample in self._by_name.get(name, [])
            if all(sample.labels.get(label) == value for label, value in labels.items())
        ]

    def total(self, name: str, labels: Mapping[str, str]) -> float:
        """The sum over everything that has these labels; 0 when there is nothing."""
        return sum(sample.value for sample in self.of(name, labels))


def scrape(endpoints: Sequence[str], timeout_s: float) -> Samples:
    """The service's own series and vLLM's, of all endpoints together.

    Raises:
        ScrapeFailed: an endpoint did not answer, or not with metrics.
    """
    with ThreadPoolExecutor(max(1, len(endpoints))) as pool:
        pages = list(pool.map(lambda endpoint: _page(endpoint, timeout_s), endpoints))
    return Samples([sample for page in pages for sample in parse(page)])


def parse(page: str) -> list[Sample]:
    """The samples of a page in Prometheus' text format whose names begin with one of `PREFIXES`."""
    # Ray exports hundreds of series of its own; only the lines that are wanted are parsed.
    lines = [
        line for line in page.splitlines() if line.removeprefix("# TYPE ").removeprefix("# HELP ").startswith(PREFIXES)
    ]
    return [
        Sample(sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
    ]


def _page(endpoint: str, timeout_s: float) -> str:
    try:
        return httpx.get(endpoint, timeout=timeout_s).raise_for_status().text
    except httpx.HTTPError as error:
        raise ScrapeFailed(f"no metrics from {endpoint}: {error}") from error
