"""A step of load through the whole service: each stage goes from one replica to four and back, and nobody notices.

Guards: requests that are lost on their way to a replica that goes, streams that are cut by a change of the replicas,
replicas that begin to serve before they can, and stages whose signals do not reach Ray's autoscaler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.chaos import is_engine
from tests.e2e.leases import stage_status, wait_until_nothing_is_held
from tests.e2e.load import Ask, Load, decided_answers_to
from tests.e2e.servers import Server, triptych_server

logger = logging.getLogger(__name__)
_STAGES = ("encoder", "prefill", "decode")
_MOST = 4
_DEADLINE_S = 240
_UP_TIMEOUT_S = 300.0
_DOWN_TIMEOUT_S = 300.0
_LOOK_EVERY_S = 0.5
_NUM_STREAMS = 3
_STREAM_TOKENS = 1000
_NUM_CLIENTS = 28
_HALVES_S = 45.0  # Our policies go down by halves, of which there are two.
_AT_ONCE_S = 120.0

pytestmark = pytest.mark.timeout(1200)


def _scaled(downscale_delay_s: float, **policy: Any) -> dict[str, Any]:
    """Ray's autoscaling_config with times that are short enough to be waited for.

    What starts takes the processor from what serves. Lulls that come of it must not undo the start.
    """
    return {
        "autoscaling": {
            "min_replicas": 1,
            "max_replicas": _MOST,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 5.0,
            "upscale_delay_s": 1.0,
            "downscale_delay_s": downscale_delay_s,
            **policy,
        }
    }


def _backlog(name: str, target_backlog_s: float, target_utilization: float) -> dict[str, Any]:
    """One of our policies. A tiny model needs low targets: of two cores each of its stages takes a small part."""
    targets = {"target_backlog_s": target_backlog_s, "target_utilization": target_utilization}
    return {"policy_function": name, "policy_kwargs": targets}


@pytest.fixture
def scaling_config(service_settings: dict[str, object], tmp_path: Path) -> Path:
    """One replica of each stage to begin with, and nothing kept that would spare a stage its work."""
    limits = service_settings["limits"]
    assert isinstance(limits, dict)
    engine = {
        "kv_cache_bytes": "96 MiB",
        "embedding_store_bytes": "32 MiB",
        "engine_args": {"max_model_len": 4096, "enforce_eager": True, "enable_prefix_caching": False},
    }
    settings = {
        **service_settings,
        "encoder": {"cache_bytes": "1 MiB", **_scaled(_HALVES_S, policy=_backlog("encoder_backlog", 0.05, 0.15))},
        "prefill": {**engine, **_scaled(_HALVES_S, policy=_backlog("prefill_backlog", 0.1, 0.15))},
        # Ray's own policy: here its count of requests is the load. What goes on all the time fits one replica, with the
        # looks at its state, which Ray counts, too.
        "decode": {**engine, **_scaled(_AT_ONCE_S, target_ongoing_requests=_NUM_STREAMS + 2)},
        "transfer": {"lease_s": 120, "arena_bytes": "64 MiB"},
        "observability": {},
        "limits": {**limits, "deadline_s": _DEADLINE_S},
    }
    config = tmp_path / "scaling.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def _short_asks() -> list[Ask]:
    """Text and pictures, some streamed; what is asked without pictures is answered at length, which decode is to do."""
    return [
        Ask(number, pictures, 96 if pictures else 384, stream=number % 3 == 0, scale=3)
        for number, pictures in enumerate([0, 4, 0, 1] * 4)
    ]


def _long_asks() -> list[Ask]:
    """Streams that last longer than a change of the replicas takes."""
    return [Ask(100 + number, number % 2, _STREAM_TOKENS, stream=True) for number in range(6)]


@dataclass
class Watch:
    """Who serves, as the service's own status tells it.

    Attributes:
        serving: process ids of each stage's replicas at the last look, with the requests that each had.
        left_at_work: replicas that were taken away and had requests at the look before, by stage.
    """

    service: Server
    serving: dict[str, dict[int, int]] = field(default_factory=dict)
    left_at_work: Counter[str] = field(default_factory=Counter)

    def look(self) -> dict[str, int]:
        """Look once; the number of replicas by stage."""
        for stage in _STAGES:
            held = "num_pending" if stage == "encoder" else "num_running"
            now = {replica["process_id"]: replica[held] for replica in stage_status(self.service, stage)}
            gone = self.serving.get(stage, {}).keys() - now.keys()
            self.left_at_work[stage] += sum(self.serving[stage][process_id] > 0 for process_id in gone)
            if now.keys() != self.serving.get(stage, {}).keys():
                logger.info("%s: %s", stage, now)
            self.serving[stage] = now
        return {stage: len(replicas) for stage, replicas in self.serving.items()}

    async def until_all_have(self, number: int, timeout_s: float) -> None:
        """Look until every stage has so many replicas at once."""
        deadline = time.monotonic() + timeout_s
        wanted = dict.fromkeys(_STAGES, number)
        while (now := await asyncio.to_thread(self.look)) != wanted:
            assert time.monotonic() < deadline, f"replicas are {now}, not {wanted}"
            await asyncio.sleep(_LOOK_EVERY_S)

    async def until_each_has_had(self, number: int, timeout_s: float) -> None:
        """Look until every stage has had so many replicas, if not all at the same time."""
        deadline = time.monotonic() + timeout_s
        most = dict.fromkeys(_STAGES, 0)
        while min(most.values()) < number:
            assert time.monotonic() < deadline, f"replicas have been {most}, not {number}"
            now = await asyncio.to_thread(self.look)
            most = {stage: max(most[stage], now[stage]) for stage in _STAGES}
            await asyncio.sleep(_LOOK_EVERY_S)


def test_every_stage_follows_a_step_of_load_and_no_request_is_lost(scaling_config: Path, tmp_path: Path) -> None:
    with triptych_server(scaling_config, tmp_path) as service:
        service.wait_until_ready()
        expected_short = asyncio.run(decided_answers_to(service, _short_asks(), _DEADLINE_S))
        expected_long = asyncio.run(decided_answers_to(service, _long_asks(), _DEADLINE_S))
        assert len(expected_short) >= 8
        assert len(expected_long) >= 2
        assert len({*expected_short.values()}) > len(expected_short) / 2  # They depend on what is asked.

        watch = Watch(service)
        few_pictures = {ask: answer for ask, answer in expected_short.items() if ask.num_pictures < 2}
        low = Load(few_pictures, 1, _DEADLINE_S + 30)
        streams = Load(expected_long, _NUM_STREAMS, _DEADLINE_S + 30)
        high = Load(expected_short, _NUM_CLIENTS, _DEADLINE_S + 30)
        asyncio.run(_step(service, watch, [low, streams], high))
        for load in (low, streams, high):
            logger.info("%d answered by %d clients", load.num_answered, load.num_clients)
            assert not load.wrong, load.wrong
            assert not load.failures, load.failures
        assert watch.left_at_work["decode"], "no stream was under way on a decode replica that was taken away"

        wait_until_nothing_is_held(service)
        assert asyncio.run(decided_answers_to(service, expected_short, _DEADLINE_S)) == expected_short
        _wait_for(lambda: _engines(service) == [True, True], "engines of replicas that were taken away are left")


async def _step(service: Server, watch: Watch, steady: list[Load], high: Load) -> None:
    """The steady load all the time, the high one until every stage has all its replicas; until all have one again."""
    over = asyncio.Event()
    reached = asyncio.Event()
    tasks = [asyncio.ensure_future(load.run(service, lambda: not over.is_set())) for load in steady]
    try:
        await watch.until_all_have(1, _DOWN_TIMEOUT_S)
        tasks.append(asyncio.ensure_future(high.run(service, lambda: not reached.is_set())))
        await watch.until_each_has_had(_MOST, _UP_TIMEOUT_S)
        reached.set()
        await watch.until_all_have(1, _DOWN_TIMEOUT_S)
    finally:
        reached.set()
        over.set()
        await asyncio.gather(*tasks)


def _engines(service: Server) -> list[bool]:
    """Whether each engine process computes; one that has ended and that nobody waited for does not."""
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                found.append(False)
            elif is_engine(process):
                found.append(True)
    return found


def _wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(_LOOK_EVERY_S)
