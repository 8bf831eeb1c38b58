"""The plan of deployments: what is taken away is given the time that its requests may last."""

from __future__ import annotations

import pytest
from ray.serve._private.build_app import build_app as resolve_graph

from cluster.app import build_service
from configs import TriptychConfig


@pytest.mark.parametrize("deadline_s", [60.0, 900.0])
def test_no_replica_is_ended_before_the_longest_request_is(deadline_s: float) -> None:
    """Ray kills a replica that drains for longer, and the streams in it."""
    settings = {"model": "a/b", "encoder": {}, "prefill": {}, "decode": {}, "limits": {"deadline_s": deadline_s}}
    built = resolve_graph(build_service(TriptychConfig.model_validate(settings)), name="test")
    drains = {
        deployment.name: deployment._deployment_config.graceful_shutdown_timeout_s for deployment in built.deployments
    }
    assert {*drains} == {"ingress", "encoder", "prefill", "decode"}
    assert all(drain_s > deadline_s for drain_s in drains.values())
