"""What a service refuses before it starts a single process."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from cluster.runtime import Service, StartupFailed
from configs import TriptychConfig

BALANCED = {"policy_function": "balanced_stages"}


def start(ray_address: str | None, **settings: Any) -> None:
    config = TriptychConfig.model_validate({"model": "a/b", "decode": {}, **settings})
    Service(config, port=1, ray_address=ray_address).start(lambda line: pytest.fail(f"something was begun: {line}"))


def test_a_slip_in_autoscaling_ends_the_start() -> None:
    with pytest.raises(StartupFailed, match=r"decode\.autoscaling\.max_replica: unknown"):
        start(None, decode={"autoscaling": {"max_replica": 2}})
    assert not ray.is_initialized()


def test_a_policy_for_all_stages_is_refused_where_ray_would_not_take_it() -> None:
    """Without a word the stages would be scaled by Ray's own policy; the other way would end other applications."""
    with pytest.raises(StartupFailed, match="use 'serve deploy'"):
        start("auto", decode={"autoscaling": {"max_replicas": 2}}, autoscaling_policy=BALANCED)
    assert not ray.is_initialized()
