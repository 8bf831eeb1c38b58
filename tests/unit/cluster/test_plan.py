"""The plan of deployments: what is taken away is given the time that its requests may last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.build_app import build_app as resolve_graph

from cluster.app import build_service
from cluster.plan import plan_deployments
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


def test_only_what_takes_no_devices_is_started_beside_what_it_replaces() -> None:
    """With all devices taken a new replica would wait for an old one, and that one for the new one."""
    settings = {"model": "a/b", "encoder": {}, "decode": {"resources_per_rank": {"NPU": 1}}, "device": "npu"}
    built = resolve_graph(build_service(TriptychConfig.model_validate(settings)), name="test")
    surges = {deployment.name: deployment._deployment_config.max_surge_percent for deployment in built.deployments}
    assert surges == {"ingress": 100, "encoder": 100, "decode": 0}


def test_replicas_start_where_the_path_of_python_has_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts the name into a shell command as it is."""
    python = tmp_path / "a folder" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    (plan, *_) = plan_deployments(TriptychConfig.model_validate({"model": "a/b", "decode": {}})).values()
    named = plan.actor_options()["runtime_env"]["py_executable"]
    done = subprocess.run(["bash", "-c", f"exec {named} -c 'print(1)'"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
