"""A killer of a service's processes, and what tells which of them serve."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Sequence

import psutil
import requests

from tests.e2e.leases import stage_status
from tests.e2e.servers import Server

logger = logging.getLogger(__name__)
STAGES = ("ingress", "encoder", "prefill", "decode")
_ENGINE = "EngineCore"
_INGRESS_PORTS = range(30000, 31001)  # Serve's own, for the HTTP servers in replicas
_HEALTH_TIMEOUT_S = 10.0


class Killer:
    """Ends a random process of a random stage with SIGKILL, where another replica of the stage is left to serve."""

    def __init__(self, service: Server, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)
        self.kills: list[tuple[str, float]] = []

    def kill_one(self) -> None:
        """One kill; none when no stage has two replicas at the moment."""
        candidates = {stage: replicas for stage in STAGES if len(replicas := live_replicas(self._service, stage)) > 1}
        if not candidates:
            return
        # Stages that were hit less often first: two minutes are short for chance.
        hits = Counter(stage.partition(":")[0] for stage, _ in self.kills)
        fewest = min(hits[stage] for stage in candidates)
        stage = self._random.choice([stage for stage in candidates if hits[stage] == fewest])
        replica = psutil.Process(self._random.choice(candidates[stage]))
        engines = [child for child in replica.children(recursive=True) if is_engine(child)]
        victim = self._random.choice([replica, *engines])
        victim.kill()
        name = stage if victim is replica else f"{stage}:engine"
        self.kills.append((name, time.monotonic()))
        logger.info("killed %s, of %s", name, {stage: len(replicas) for stage, replicas in candidates.items()})

    def num_kills(self, stage: str, since: float, until: float) -> int:
        """Kills of this stage in a span of time."""
        return sum(since <= moment <= until for name, moment in self.kills if name.partition(":")[0] == stage)


def live_replicas(service: Server, stage: str) -> list[int]:
    """Process ids of the stage's replicas that can serve."""
    if stage != "ingress":
        return [replica["process_id"] for replica in stage_status(service, stage)]
    return [process.pid for process in _ingress_processes(service) if _answers(process)]


def _ingress_processes(service: Server) -> Sequence[psutil.Process]:
    """The processes of the ingress replicas, those that start included."""
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if is_replica(process) and "ingress" in process.cmdline()[0]:
                found.append(process)
    return found


def is_replica(process: psutil.Process) -> bool:
    """Whether this is a replica's process, which Ray names after its class and deployment."""
    return any("ServeReplica" in part for part in process.cmdline())


def is_engine(process: psutil.Process) -> bool:
    """Whether this is the process of a vLLM engine."""
    return any(_ENGINE in part for part in process.cmdline())


def _answers(process: psutil.Process) -> bool:
    """Whether the replica's own HTTP server, to which HAProxy passes requests on, is there."""
    try:
        ports = [connection.laddr.port for connection in process.net_connections("tcp")]
    except psutil.Error:
        return False
    for port in set(ports) & set(_INGRESS_PORTS):
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=_HEALTH_TIMEOUT_S).ok:
                return True
    return False
