"""The leases of one request at a real encoder's end: they outlive their time while the request does, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from cluster.leases import RequestLeases
from transfer import EmbeddingExpired, ServerSettings

TENSOR = torch.arange(8, dtype=torch.float32).view(2, 4)
LEASE_S = 0.6
WAIT_S = 30.0


async def test_a_lease_lasts_while_its_request_waits(bench: Any, eventually: Any) -> None:
    server, client = bench.server(ServerSettings(lease_s=LEASE_S)), bench.client()
    waiting, forgotten = bench.offer(server, TENSOR), bench.offer(server, TENSOR)
    leases = RequestLeases(client, LEASE_S)
    leases.take(waiting)
    await asyncio.sleep(4 * LEASE_S)
    assert isinstance(client.fetch(forgotten, WAIT_S).exception(WAIT_S), EmbeddingExpired)
    assert torch.equal(client.fetch(waiting, WAIT_S).result(WAIT_S), TENSOR)
    leases.close()
    eventually(lambda: server.stats().num_leases == 0)
    assert (server.stats().num_released, server.stats().num_expired) == (1, 1)


async def test_a_lease_that_was_handed_over_is_not_renewed(bench: Any, eventually: Any) -> None:
    server, client = bench.server(ServerSettings(lease_s=LEASE_S)), bench.client()
    ref = bench.offer(server, TENSOR)
    leases = RequestLeases(client, LEASE_S)
    leases.take(ref)
    leases.hand_over([ref])
    await asyncio.sleep(2 * LEASE_S)
    eventually(lambda: server.stats().num_expired == 1)
    leases.close()
