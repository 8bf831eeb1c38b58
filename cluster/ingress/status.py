"""`GET /triptych/status`: what every replica of every stage holds and has done, as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter

StatusSource = Callable[[], Awaitable[Mapping[str, Sequence[Any]]]]
"""Gives the statistics of each stage's replicas, by stage name."""


def status_router(topology: str, source: StatusSource, metrics_endpoints: Callable[[], list[str]]) -> APIRouter:
    """The route. Replicas that do not answer in time are left out of their stage's list."""
    router = APIRouter()

    @router.get("/triptych/status")
    async def status() -> dict[str, Any]:
        stages = await source()
        return {
            "topology": topology,
            "metrics_endpoints": await asyncio.to_thread(metrics_endpoints),
            "stages": {name: [dataclasses.asdict(stats) for stats in replicas] for name, replicas in stages.items()},
        }

    return router
