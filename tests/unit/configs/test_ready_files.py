"""The ready deployment files load, build their application graph, and say what the demo says."""

from pathlib import Path

import pytest
import yaml
from ray.serve._private.build_app import build_app as resolve_graph
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from cluster.app import build_app, build_service
from configs import ConfigError, TriptychConfig, load_config

FOLDER = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def resources(config: TriptychConfig) -> dict[str, dict[str, float]]:
    """What each deployment of the resolved graph asks Ray for, apart from CPUs."""
    built = resolve_graph(build_service(config), name="test")
    amounts = {}
    for deployment in built.deployments:
        options = deployment.ray_actor_options
        amounts[deployment.name] = {**options.get("resources", {})}
        if "num_gpus" in options:
            amounts[deployment.name]["GPU"] = options["num_gpus"]
    return amounts


@pytest.mark.parametrize(
    "name, device, unit, per_encoder",
    [("qwen2_5_vl_7b_ascend.yaml", "npu", "NPU", 1.0), ("qwen2_5_vl_7b_cuda.yaml", "cuda", "GPU", 0.5)],
)
def test_a_cluster_file_builds_its_graph(name: str, device: str, unit: str, per_encoder: float) -> None:
    config = load_config(FOLDER / name)
    assert (config.device, config.topology) == (device, "E/P/D")
    assert resources(config) == {
        "ingress": {},
        "encoder": {unit: per_encoder},
        "prefill": {unit: 1.0},
        "decode": {unit: 1.0},
    }


def test_the_demo_builds_its_graph_and_reserves_nothing(checkpoint: str) -> None:
    config = load_config(FOLDER / "demo.yaml", model=checkpoint)
    assert config.topology == "E/P/D"
    assert resources(config) == {"ingress": {}, "encoder": {}, "prefill": {}, "decode": {}}


def test_the_serve_file_is_valid_and_is_the_demo(checkpoint: str) -> None:
    """Two files with the same service must not drift apart."""
    schema = ServeDeploySchema.model_validate(yaml.safe_load((FOLDER / "serve_demo.yaml").read_text()))
    (application,) = schema.applications
    assert application.import_path == "cluster.app:build_app"
    demo = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    assert application.args == {**demo, "transfer": {"bind_host": "127.0.0.1"}}
    built = resolve_graph(build_app({**application.args, "model": checkpoint}), name="test")
    assert {deployment.name for deployment in built.deployments} == {"ingress", "encoder", "prefill", "decode"}


def test_the_autoscaling_file_is_valid_and_its_policy_is_made_by_ray(checkpoint: str) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load((FOLDER / "serve_autoscaling.yaml").read_text()))
    (application,) = schema.applications
    assert application.autoscaling_policy is not None
    AutoscalingPolicy(**application.autoscaling_policy).get_policy()(**application.autoscaling_policy["policy_kwargs"])
    built = resolve_graph(build_app({**application.args, "model": checkpoint}), name="test")
    scaled = {deployment.name for deployment in built.deployments if deployment._deployment_config.autoscaling_config}
    assert scaled == {"encoder", "prefill", "decode"}


def test_a_policy_among_the_args_is_refused(checkpoint: str) -> None:
    """Ray takes it from the Serve config file itself; here it would be lost without a word."""
    with pytest.raises(ConfigError, match="put it beside `import_path`"):
        build_app({"model": checkpoint, "decode": {}, "autoscaling_policy": {"policy_function": "balanced_stages"}})
