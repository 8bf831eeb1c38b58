"""The KubeRay manifests: against the published schema of RayService, and their Serve configuration against the code.

`rayservice_crd.json.gz` is the schema of the custom resource as KubeRay publishes it, without its descriptions; it
names the commit. Kubernetes drops what a schema does not know without a word, so here that is an error.
"""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.plan import plan_deployments, total_resources
from configs import TriptychConfig

_CRD = Path(__file__).with_name("rayservice_crd.json.gz")
_FOLDER = Path(__file__).resolve().parents[4] / "configs" / "kuberay"
MANIFESTS = sorted(path.name for path in _FOLDER.glob("*.yaml"))
_DEVICES = {"GPU": "nvidia.com/gpu", "NPU": "huawei.com/Ascend910"}


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items() if not name.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    open_object = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(schema.get("properties"), dict) and not open_object and "additionalProperties" not in schema:
        strict["additionalProperties"] = False
    if isinstance(schema.get("properties"), dict):
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
    return strict


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    crd = json.loads(gzip.decompress(_CRD.read_bytes()))
    assert (crd["group"], crd["version"], crd["kind"]) == ("ray.io", "v1", "RayService")
    strict: dict[str, Any] = _strict(crd["schema"])
    # These two are described by Kubernetes itself.
    strict["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return strict


def _manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
    return content


def _errors(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def _application(manifest: dict[str, Any]) -> TriptychConfig:
    """The settings in a manifest, after Ray's own check of the Serve configuration around them."""
    serve = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = serve.applications
    assert application.import_path == "cluster.app:build_app"
    assert serve.http_options.host == "0.0.0.0"
    return TriptychConfig.model_validate(application.args)


@pytest.mark.parametrize("name", MANIFESTS)
def test_it_is_what_the_schema_says(name: str, schema: dict[str, Any]) -> None:
    manifest = _manifest(name)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert _errors(manifest, schema) == []


@pytest.mark.parametrize(
    "path",
    [
        ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"),
        ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplica"),
        ("spec", "serveConfig"),
    ],
)
def test_a_slip_is_seen(path: tuple[str | int, ...], schema: dict[str, Any]) -> None:
    """Kubernetes would drop the field and say nothing."""
    manifest = copy.deepcopy(_manifest(MANIFESTS[0]))
    place: Any = manifest
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = "x"
    assert len(_errors(manifest, schema)) == 1


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_settings_fit_the_pods(name: str) -> None:
    """All replicas at their most find devices; the pods' limits name as many as Ray is told of."""
    manifest = _manifest(name)
    config = _application(manifest)
    cluster = manifest["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    resource = "GPU" if config.device == "cuda" else "NPU"
    per_pod = int(container["resources"]["limits"][_DEVICES[resource]])
    plans = plan_deployments(config)
    assert total_resources(plans)[resource] <= group["maxReplicas"] * per_pod
    least = sum(
        plan.resources.get(resource, 0.0) * (plan.autoscaling or {}).get("min_replicas", plan.num_replicas)
        for plan in plans.values()
    )
    assert least <= group["minReplicas"] * per_pod
    if resource == "NPU":
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {"NPU": per_pod}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_has_model_key_and_shared_memory(name: str) -> None:
    manifest = _manifest(name)
    cluster = manifest["spec"]["rayClusterConfig"]
    model = _application(manifest).model
    for template in (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])):
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert any(model.startswith(f"{path}/") for path in mounts)
        assert "/dev/shm" in mounts
        assert set(mounts.values()) == {volume["name"] for volume in template["spec"]["volumes"]}
        assert "TRIPTYCH_CURVE_KEY" in {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_settings_are_those_of_the_deployment_file(name: str) -> None:
    """The same service as `configs/<name>`, apart from where the model and the key lie."""
    beside: dict[str, Any] = yaml.safe_load((_FOLDER.parent / name).read_text(encoding="utf-8"))
    del beside["transfer"]["curve_key_file"]
    here = _application(_manifest(name)).model_dump(exclude={"model"})
    assert here == TriptychConfig.model_validate(beside).model_dump(exclude={"model"})
