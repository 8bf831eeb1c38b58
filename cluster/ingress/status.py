"""`GET /triptych/status`: what every replica of every stage holds and has done, as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter

from cluster.metrics.scrape import MetricsExport

StatusSource = Callable[[], Awaitable[Mapping[str, Sequence[Any]]]]
"""Gives the statistics of each stage's replicas, by stage name."""


def status_router(topology: str, source: StatusSource, metrics_export: Callable[[], MetricsExport]) -> APIRouter:
    """The route. Replicas that do not answer in time are left out of their stage's list."""
    router = APIRouter()

    @router.get("/triptych/status")
    async def status() -> dict[str, Any]:
        stages = await source()
        export = await asyncio.to_thread(metrics_export)
        return {
            "topology": topology,
            "metrics_endpoints": export.endpoints,
            "metrics_interval_s": export.interval_s,
            "stages": {name: [dataclasses.asdict(stats) for stats in replicas] for name, replicas in stages.items()},
        }

    return router
