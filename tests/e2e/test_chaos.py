"""Chaos: under a steady mixed load a process of a random stage, the ingress included, is killed every ten seconds.

Two minutes, or as many seconds as TRIPTYCH_CHAOS_S says. A kill takes a replica's own process or that of its engine,
and only where the stage has another replica that serves meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from tests.e2e.chaos import STAGES, Killer, is_engine, is_replica, live_replicas
from tests.e2e.leases import wait_until_nothing_is_held
from tests.e2e.load import Load, answers_to, asks
from tests.e2e.servers import Server, triptych_server

logger = logging.getLogger(__name__)
_SECONDS = float(os.environ.get("TRIPTYCH_CHAOS_S", "120"))
_KILL_EVERY_S = 10.0
_NUM_CLIENTS = 6
_DEADLINE_S = 60
_LEASE_S = 30
_RESTART_TIMEOUT_S = 300.0
_MAX_FAILED = 0.005
_SHARED_MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.timeout(900 + 2 * int(_SECONDS))


@pytest.fixture
def chaos_config(service_settings: dict[str, object], tmp_path: Path) -> Path:
    """Two replicas of each stage and of the ingress."""
    limits = service_settings["limits"]
    assert isinstance(limits, dict)
    settings = {
        **service_settings,
        "ingress": {"num_replicas": 2},
        "transfer": {"lease_s": _LEASE_S},
        "observability": {},
        "limits": {**limits, "deadline_s": _DEADLINE_S},
    }
    config = tmp_path / "chaos.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def test_every_request_ends_rightly_while_processes_are_killed(chaos_config: Path, tmp_path: Path) -> None:
    before = _shared_memory()
    with triptych_server(chaos_config, tmp_path) as service:
        service.wait_until_ready()
        undisturbed = asyncio.run(answers_to(service, asks(), _DEADLINE_S))
        assert len(set(undisturbed.values())) > len(undisturbed) / 2  # They depend on what is asked.

        killer = Killer(service, seed=int(_SECONDS))
        load = Load(undisturbed, _NUM_CLIENTS, timeout_s=_DEADLINE_S + 30)
        asyncio.run(_load_while_killing(load, service, killer))
        _judge(load, killer)

        _wait_for_all_replicas(service)
        wait_until_nothing_is_held(service, timeout_s=_LEASE_S + 15)
        assert asyncio.run(answers_to(service, asks(), _DEADLINE_S)) == undisturbed
        processes = psutil.Process(service.process.pid).children(recursive=True)
        assert not [process for process in processes if _is_engine_without_replica(process)]
    assert not [process for process in processes if process.is_running()]
    # Python's own semaphores stay where Ray kills the process that would unlink them with the rest of a dead replica.
    left = {name for name in _shared_memory() - before if not name.startswith("sem.mp-") and not _is_used(name)}
    assert not left


async def _load_while_killing(load: Load, service: Server, killer: Killer) -> None:
    begun = time.monotonic()
    running = asyncio.ensure_future(load.run(service, lambda: time.monotonic() < begun + _SECONDS))
    number = 1
    while number * _KILL_EVERY_S < _SECONDS:
        left_s = begun + number * _KILL_EVERY_S - time.monotonic()
        done, _ = await asyncio.wait([running], timeout=max(0.0, left_s))
        if done:
            break
        await asyncio.to_thread(killer.kill_one)
        number += 1
    await running


def _judge(load: Load, killer: Killer) -> None:
    """All answers right, and few typed errors.

    A connection that its ingress held when it was killed may be cut. For a second after a change of replicas the
    HAProxy of before still holds connections and knows no other ingress than the killed one: it asks Serve's own
    proxy, which has nobody either and says so in plain text.
    """
    kills = Counter(name for name, _ in killer.kills)
    logger.info("%d answered, %d failed, kills: %s", load.num_answered, len(load.failures), dict(kills))
    assert not load.wrong, load.wrong
    for failure in load.failures:
        is_of_serve = failure.code == "" and failure.detail == "Internal Server Error"
        if failure.code == "cut" or is_of_serve:
            assert killer.num_kills("ingress", failure.begun, failure.ended), failure
        else:
            assert failure.code not in ("", "hung"), failure
    assert len(killer.kills) >= _SECONDS / _KILL_EVERY_S / 2, killer.kills
    typed = [failure for failure in load.failures if failure.code not in ("cut", "")]
    assert len(typed) <= _MAX_FAILED * (load.num_answered + len(load.failures)), typed


def _wait_for_all_replicas(service: Server) -> None:
    deadline = time.monotonic() + _RESTART_TIMEOUT_S
    while any(len(live_replicas(service, stage)) < 2 for stage in STAGES):
        assert time.monotonic() < deadline, {stage: live_replicas(service, stage) for stage in STAGES}
        time.sleep(1)


def _is_engine_without_replica(process: psutil.Process) -> bool:
    """An engine whose replica was killed must end by itself."""
    try:
        parent = process.parent()
        return is_engine(process) and (parent is None or not is_replica(parent))
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _shared_memory() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()}


def _is_used(name: str) -> bool:
    """Whether a process of this machine has the file open or mapped: other programs may run beside the test."""
    path = str(_SHARED_MEMORY / name)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path in (process / "maps").read_text(errors="replace"):
                return True
            if any(str(link.readlink()) == path for link in (process / "fd").iterdir()):
                return True
    return False
