"""The clock of the simulated fleets, which Ray's delays go by as well."""

from __future__ import annotations

import pytest

from tests.unit.cluster.autoscaling.simulated_fleet import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ray.serve.autoscaling_policy.time.time", clock)
    return clock
