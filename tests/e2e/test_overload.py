"""More requests at once than the ingress takes in: each is answered rightly or told when to come again.

Guards: requests that are cut instead of refused, refusals that do not say when to come again, and places of the bound
or leases of embeddings that stay taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.leases import wait_until_nothing_is_held
from tests.e2e.load import KEEP_CONNECTIONS, Answer, Ask, decided_answers_to, whole_answer
from tests.e2e.servers import Server, triptych_server

logger = logging.getLogger(__name__)
_MOST = 64
_NUM_REQUESTS = 500
_NUM_TOKENS = 8
_TIMEOUT_S = 300

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def bounded_config(service_settings: dict[str, object], tmp_path: Path) -> Path:
    """One replica of each stage behind an ingress that takes 64 requests in."""
    engine = {"kv_cache_bytes": "192 MiB", "engine_args": {"max_model_len": 4096, "enforce_eager": True}}
    settings = {
        **service_settings,
        "encoder": {},
        "prefill": engine,
        "decode": engine,
        "ingress": {"max_admitted_requests": _MOST},
        "observability": {},
    }
    config = tmp_path / "bounded.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def test_500_requests_at_once_where_64_are_taken_in(bounded_config: Path, tmp_path: Path) -> None:
    with triptych_server(bounded_config, tmp_path) as service:
        service.wait_until_ready()
        asks = [Ask(300 + number, 1 + number % 4, _NUM_TOKENS, stream=False) for number in range(40)]
        expected = asyncio.run(decided_answers_to(service, asks, _TIMEOUT_S))
        assert len(expected) >= len(asks) / 2

        outcomes = asyncio.run(_ask_at_once(service, list(expected), _NUM_REQUESTS))
        _judge(outcomes, expected)
        assert sum(answer.is_success for _, answer in outcomes) >= _MOST
        assert not all(answer.is_success for _, answer in outcomes)

        wait_until_nothing_is_held(service)
        # Every place is free again: as many as fit are all taken in.
        again = asyncio.run(_ask_at_once(service, list(expected), _MOST))
        _judge(again, expected)
        assert all(answer.is_success for _, answer in again)
        wait_until_nothing_is_held(service)


async def _ask_at_once(service: Server, asks: Sequence[Ask], number: int) -> list[tuple[Ask, httpx.Response]]:
    bodies = {ask: ask.body() for ask in asks}
    async with httpx.AsyncClient(base_url=service.url, timeout=_TIMEOUT_S, limits=KEEP_CONNECTIONS) as client:

        async def one(ask: Ask) -> tuple[Ask, httpx.Response]:
            return ask, await client.post("/v1/chat/completions", json=bodies[ask])

        return await asyncio.gather(*(one(asks[index % len(asks)]) for index in range(number)))


def _judge(outcomes: Sequence[tuple[Ask, httpx.Response]], expected: dict[Ask, Answer]) -> None:
    logger.info("answers by status: %s", dict(Counter(answer.status_code for _, answer in outcomes)))
    for ask, answer in outcomes:
        if answer.is_success:
            assert whole_answer(answer.json()["choices"][0]) == expected[ask], ask
        else:
            assert answer.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE), answer.text
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["error"]["message"]
