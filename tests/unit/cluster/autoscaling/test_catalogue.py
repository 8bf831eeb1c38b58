"""A slip in `autoscaling` is named before anything starts, and what Ray is handed is what it would take itself."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.build_app import build_app as resolve_graph
from ray.serve.config import AutoscalingPolicy

from cluster.app import build_service
from cluster.autoscaling.catalogue import APPLICATION, POLICIES, resolve_autoscaling, resolve_policy
from cluster.plan import application_policy, plan_deployments
from configs import ConfigError, TriptychConfig
from tests.unit.cluster.autoscaling.simulated_fleet import Clock, Stage


def config(**settings: Any) -> TriptychConfig:
    return TriptychConfig.model_validate({"model": "a/b", "encoder": {}, "prefill": {}, "decode": {}, **settings})


def scaled(stage: str, **autoscaling: Any) -> TriptychConfig:
    return config(**{stage: {"autoscaling": {"max_replicas": 4, **autoscaling}}})


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_ours_is_made_by_ray(clock: Clock, name: str) -> None:
    """Ray pickles the class by value and makes it in its controller."""
    resolved = resolve_policy("p", {"policy_function": name}, POLICIES[name].scope)
    policy = _resolve_policy_callable(AutoscalingPolicy(**resolved))
    stage = Stage("encoder", clock, 1.0)
    context = stage.context()
    argument = {stage.deployment: context} if POLICIES[name].scope == APPLICATION else context
    replicas, _ = policy(argument)
    assert replicas in (1, {stage.deployment: 1})


def test_rays_own_settings_pass_unchanged() -> None:
    given = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 4, "upscale_delay_s": 10}
    assert resolve_autoscaling("prefill", given) == given
    own = {**given, "policy": {"policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy"}}
    assert resolve_autoscaling("prefill", own) == own


def test_a_short_name_reaches_the_deployment_as_a_path_with_its_arguments() -> None:
    policy = {"policy_function": "decode_load", "policy_kwargs": {"target_tpot_s": 0.05}}
    built = resolve_graph(build_service(scaled("decode", policy=policy)), name="test")
    (decode,) = (deployment for deployment in built.deployments if deployment.name == "decode")
    handed = decode._deployment_config.autoscaling_config.policy
    assert handed.policy_function == "cluster.autoscaling.decode:DecodeLoadPolicy"
    assert handed.policy_kwargs == {"target_tpot_s": 0.05}


@pytest.mark.parametrize(
    ("stage", "autoscaling", "message"),
    [
        ("encoder", {"max_replica": 3}, "encoder.autoscaling.max_replica: unknown .* did you mean 'max_replicas'"),
        ("ingress", {"min_replicas": 9}, "ingress.autoscaling: max_replicas .4. must be greater"),
        ("decode", {"upscale_delay_s": "soon"}, "decode.autoscaling.upscale_delay_s: "),
        ("encoder", {"policy": "encoder_backlog"}, "encoder.autoscaling.policy: must be a mapping such as"),
        ("encoder", {"policy": {"policy_function": "encoder_backlogs"}}, "did you mean 'encoder_backlog'"),
        ("encoder", {"policy": {"policy_function": "decode_load"}}, "'decode_load' is for the decode; here fits enc"),
        ("decode", {"policy": {"policy_function": "balanced_stages"}}, "is for the application; here fits decode_load"),
        ("prefill", {"policy": {"policy_function": "no.such:thing"}}, "'no.such:thing' cannot be imported"),
        (
            "prefill",
            {"policy": {"policy_function": "configs.loader:nothing"}},
            "configs.loader has no policy 'nothing'",
        ),
        (
            "prefill",
            {"policy": {"policy_function": "prefill_backlog", "policy_args": {}}},
            "policy_args: unknown setting; did you mean 'policy_kwargs'",
        ),
        (
            "prefill",
            {"policy": {"policy_function": "prefill_backlog", "policy_kwargs": {"target": 1}}},
            "policy_kwargs: .*'target'; 'prefill_backlog' takes: target_backlog_s, target_utilization",
        ),
        (
            "encoder",
            {"policy": {"policy_function": "encoder_backlog", "policy_kwargs": {"target_backlog_s": -1}}},
            "target_backlog_s must be a positive number, not -1",
        ),
        (
            "decode",
            {
                "policy": {
                    "policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy",
                    "policy_kwargs": {"a": 1},
                }
            },
            "is a function, which Ray gives no arguments",
        ),
    ],
)
def test_a_slip_is_named(stage: str, autoscaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_deployments(scaled(stage, **autoscaling))


def test_all_slips_are_named_at_once() -> None:
    both = config(encoder={"autoscaling": {"max_replica": 2}}, decode={"autoscaling": {"min_replica": 2}})
    with pytest.raises(ConfigError) as error:
        plan_deployments(both)
    assert "encoder.autoscaling.max_replica" in str(error.value)
    assert "decode.autoscaling.min_replica" in str(error.value)


def test_a_policy_for_all_needs_stages_to_decide_for_and_none_with_its_own() -> None:
    balanced = {"policy_function": "balanced_stages", "policy_kwargs": {"decode": {"target_tpot_s": 0.1}}}
    plans = plan_deployments(scaled("decode"))
    resolved = application_policy(balanced, plans)
    assert resolved is not None
    assert resolved["policy_function"] == "cluster.autoscaling.balanced:BalancedStagesPolicy"
    assert application_policy(None, plans) is None
    with pytest.raises(ConfigError, match="stages that have `autoscaling`"):
        application_policy(balanced, plan_deployments(config()))
    own = plan_deployments(scaled("decode", policy={"policy_function": "decode_load"}))
    with pytest.raises(ConfigError, match=r"decode\.autoscaling\.policy: the application's"):
        application_policy(balanced, own)
    with pytest.raises(ConfigError, match="'encoder_backlog' is for the encoder; here fits balanced_stages"):
        application_policy({"policy_function": "encoder_backlog"}, plans)
