"""`serve deploy` of a changed file under load: every replica concerned is replaced, and nobody notices.

Guards: a stage or the ingress that has no replica while its old one goes and its new one starts, streams that end with
the old replica, and replicas that are replaced although nothing of theirs has changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import yaml

from tests.e2e.by_hand.ray_head import RayHead, ray_head
from tests.e2e.conftest import MODEL_NAME
from tests.e2e.leases import wait_until_nothing_is_held
from tests.e2e.load import Ask, Load, decided_answers_to
from tests.e2e.servers import Server

logger = logging.getLogger(__name__)
_APP = "triptych"
_ALL = ("ingress", "encoder", "prefill", "decode")
_UPDATE_TIMEOUT_S = 400.0
_DEADLINE_S = 120
_STREAM_TOKENS = 600
_POLL_S = 0.5

pytestmark = pytest.mark.timeout(1200)


def _write(path: Path, checkpoint: Path, port: int, num_decode: int, **limits: int) -> None:
    """A Serve config file as configs/serve_demo.yaml; the replicas of decode are said beside the settings."""
    engine = {"kv_cache_bytes": "96 MiB", "engine_args": {"max_model_len": 4096, "enforce_eager": True}}
    arguments = {
        "model": str(checkpoint),
        "served_model_name": MODEL_NAME,
        "device": "cpu",
        "dtype": "float32",
        "encoder": {},
        "prefill": engine,
        "decode": engine,
        "transfer": {"bind_host": "127.0.0.1", "lease_s": 30},
        "limits": limits,
    }
    application = {
        "name": _APP,
        "route_prefix": "/",
        "import_path": "cluster.app:build_app",
        "args": arguments,
        "deployments": [{"name": "decode", "num_replicas": num_decode}],
    }
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    path.write_text(yaml.safe_dump(document))


def test_a_changed_file_is_deployed_and_no_request_notices(checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    with ray_head(tmp_path) as head:
        service = head.service
        _write(config, checkpoint, head.port, 1, deadline_s=_DEADLINE_S)
        head.serve("deploy", str(config))
        service.wait_until_ready()
        short = asyncio.run(decided_answers_to(service, _short_asks(), _DEADLINE_S))
        long = asyncio.run(decided_answers_to(service, _long_asks(), _DEADLINE_S))
        assert len(short) >= 4
        assert long
        loads = [Load(short, 2, _DEADLINE_S + 30), Load(long, 2, _DEADLINE_S + 30)]
        asyncio.run(_update_twice(head, config, checkpoint, loads))
        for load in loads:
            logger.info("%d answered by %d clients", load.num_answered, load.num_clients)
            assert load.num_answered
            assert not load.wrong, load.wrong
            assert not load.failures, load.failures
        wait_until_nothing_is_held(service)
        assert asyncio.run(decided_answers_to(service, short, _DEADLINE_S)) == short


async def _update_twice(head: RayHead, config: Path, checkpoint: Path, loads: list[Load]) -> None:
    over = asyncio.Event()
    tasks = [asyncio.ensure_future(load.run(head.service, lambda: not over.is_set())) for load in loads]
    try:
        before = _replicas(head)
        assert {stage: len(replicas) for stage, replicas in before.items()} == dict.fromkeys(_ALL, 1)

        _write(config, checkpoint, head.port, 2, deadline_s=_DEADLINE_S)
        await asyncio.to_thread(_deploy, head, config, lambda now: len(now["decode"]) == 2)
        grown = _replicas(head)
        assert all(before[stage] <= grown[stage] for stage in _ALL), "a replica went, though no setting has changed"

        _write(config, checkpoint, head.port, 1, deadline_s=_DEADLINE_S + 60, completions_per_prompt=2)
        await asyncio.to_thread(
            _deploy, head, config, lambda now: all(now[stage] and not now[stage] & grown[stage] for stage in _ALL)
        )
        assert {stage: len(replicas) for stage, replicas in _replicas(head).items()} == dict.fromkeys(_ALL, 1)
        refused = await asyncio.to_thread(_ask_for_three, head.service)
        assert refused.status_code == requests.codes.bad_request, refused.text
    finally:
        over.set()
        await asyncio.gather(*tasks)


def _short_asks() -> list[Ask]:
    return [Ask(number, (0, 1, 2)[number % 3], 16, stream=number % 2 == 0) for number in range(12)]


def _long_asks() -> list[Ask]:
    return [Ask(100 + number, number % 2, _STREAM_TOKENS, stream=True) for number in range(6)]


def _deploy(head: RayHead, config: Path, is_done: Callable[[dict[str, set[str]]], bool]) -> None:
    """Deploy, and wait until the replicas that serve are those wanted and Serve has no more to do."""
    head.serve("deploy", str(config))
    deadline = time.monotonic() + _UPDATE_TIMEOUT_S
    while not (is_done(_replicas(head)) and head.application(_APP)["status"] == "RUNNING"):
        assert time.monotonic() < deadline, head.application(_APP)
        time.sleep(_POLL_S)


def _replicas(head: RayHead) -> dict[str, set[str]]:
    """Ids of the replicas that serve, by deployment; while Serve reads a new file it names no deployment."""
    deployments = head.application(_APP)["deployments"]
    replicas = {stage: deployments[stage]["replicas"] if stage in deployments else [] for stage in _ALL}
    return {
        stage: {replica["replica_id"] for replica in started if replica["state"] == "RUNNING"}
        for stage, started in replicas.items()
    }


def _ask_for_three(service: Server) -> requests.Response:
    """A request for more completions than the last file allows."""
    body = {**Ask(0, 0, 1, stream=False).body(), "n": 3, "temperature": 1}
    return requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=_DEADLINE_S)
