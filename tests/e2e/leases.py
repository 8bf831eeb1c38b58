"""Looks into a running service: what its replicas hold."""

from __future__ import annotations

import time
from typing import Any

import requests

from tests.e2e.servers import Server


def stage_status(service: Server, stage: str) -> list[dict[str, Any]]:
    """The statistics of each replica of a stage; none for a stage that the topology lacks."""
    answer = requests.get(f"{service.url}/triptych/status", timeout=30)
    replicas: list[dict[str, Any]] = answer.json()["stages"].get(stage, [])
    return replicas


def wait_until_nothing_is_held(service: Server, timeout_s: float = 20.0) -> None:
    """Wait for the releases under way; they must end well before any lease would run out by itself.

    Raises:
        AssertionError: a lease or a request is left.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        encoders = stage_status(service, "encoder")
        engines = stage_status(service, "prefill") + stage_status(service, "decode")
        held = sum(replica["num_leases"] + replica["num_pending"] for replica in encoders)
        running = sum(replica["num_running"] for replica in engines)
        if held == 0 and running == 0:
            return
        assert time.monotonic() < deadline, f"{held} leases and encodings, {running} requests are left"
        time.sleep(0.2)
