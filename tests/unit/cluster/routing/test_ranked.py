"""Serve is offered the replicas in the policy's order, but one that calls did not reach last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.routing.outstanding import LeastOutstandingRouter
from tests.unit.cluster.routing.routing_fleet import Replica, replica_id


@dataclass(frozen=True)
class _Running:
    replica_id: Replica
    routing_stats: dict[str, Any] = field(default_factory=dict)


async def _order(router: LeastOutstandingRouter, names: str) -> str:
    candidates: Any = [_Running(Replica(name)) for name in names]
    ranks = await router.choose_replicas(candidates)
    assert all(len(rank) == 1 for rank in ranks)
    return "".join(rank[0].replica_id.unique_id for rank in ranks)


async def test_a_replica_that_failed_comes_last_until_it_takes_a_call() -> None:
    router: Any = object.__new__(LeastOutstandingRouter)
    router.initialize_state()
    for name in "aab":
        router._ledger.place(f"{name}{len(router._ledger._calls)}", name, 1.0)
    assert await _order(router, "abc") == "cba"
    router._pauses.failed("c")
    assert await _order(router, "abc") == "bac"
    router._pauses.took("c")
    assert await _order(router, "abc") == "cba"


async def test_all_failed_is_as_if_none_had() -> None:
    router: Any = object.__new__(LeastOutstandingRouter)
    router.initialize_state()
    router._ledger.place("1", "a", 1.0)
    for name in "ab":
        router._pauses.failed(name)
    assert await _order(router, "ab") == "ba"
    assert replica_id("a").unique_id == "a"
