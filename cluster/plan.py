"""From settings to the plan of deployments: how many replicas of what, on which resources. Starts nothing."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.autoscaling.catalogue import APPLICATION, PolicyError, resolve_autoscaling, resolve_policy
from cluster.serve_environment import REPLICA_ENVIRONMENT
from configs import ConfigError, StageConfig, TriptychConfig
from configs.environment import CPU_COMPUTING

# CPU-light replicas ask for no CPU: on a small machine they would otherwise take the place of the engines.
_NO_CPU = 0.0
# What a replica needs to end in order once its last request has.
_CLOSE_S = 30.0


@dataclass(frozen=True)
class DeploymentPlan:
    """One Ray Serve deployment.

    Attributes:
        num_ranks: ranks of one replica; their resources stand together in one placement.
        resources: Ray resources of one whole replica, as `ray_actor_options` take them.
        autoscaling: Ray's autoscaling_config, checked, or None for a fixed number.
        drain_s: time that a replica which is taken away has for what it works on; no request lasts longer.
    """

    name: str
    num_replicas: int
    num_ranks: int
    resources: Mapping[str, float]
    autoscaling: Mapping[str, Any] | None
    max_ongoing_requests: int
    drain_s: float
    environment: Mapping[str, str]

    @property
    def max_replicas(self) -> int:
        """The most replicas that Ray may make."""
        return self.num_replicas if self.autoscaling is None else int(self.autoscaling.get("max_replicas", 1))

    @property
    def max_surge_percent(self) -> int:
        """By how much an update may exceed the number of replicas, so that new ones serve before old ones go.

        Only what asks for no resources: where all devices are taken, a new replica would wait for ever for an old one.
        """
        return 0 if self.resources else 100

    def actor_options(self) -> dict[str, Any]:
        """`ray_actor_options` of one replica."""
        custom = {name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU")}
        options: dict[str, Any] = {
            "num_cpus": self.resources.get("CPU", _NO_CPU),
            "runtime_env": {"env_vars": {**REPLICA_ENVIRONMENT, **self.environment}, **_interpreter()},
        }
        if "GPU" in self.resources:
            options["num_gpus"] = self.resources["GPU"]
        if custom:
            options["resources"] = custom
        return options


def _interpreter() -> dict[str, str]:
    """Ray starts a replica by a shell command that names its Python without quotes; with a space in it that fails."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def plan_deployments(config: TriptychConfig) -> dict[str, DeploymentPlan]:
    """The deployments of a service, by name, in the order of a request's way.

    Raises:
        ConfigError: a stage's `autoscaling` cannot be used.
    """
    problems = []
    for name, stage in {"ingress": config.ingress, **config.stages()}.items():
        try:
            resolve_autoscaling(name, stage.autoscaling or {})
        except PolicyError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError("\n".join(["these settings cannot be used:", *(f"  {problem}" for problem in problems)]))
    drain_s = config.limits.deadline_s + _CLOSE_S
    plans = {"ingress": _plan("ingress", config.ingress, 1, drain_s)}
    if config.encoder is not None:
        # Engines give theirs to the processes that they start; an encoder computes in the replica's own.
        computing = CPU_COMPUTING if config.device == "cpu" else {}
        plans["encoder"] = _plan("encoder", config.encoder, config.encoder.ranks_per_replica, drain_s, computing)
    if config.prefill is not None:
        plans["prefill"] = _plan("prefill", config.prefill, config.prefill.tensor_parallel_size, drain_s)
    plans["decode"] = _plan("decode", config.decode, config.decode.tensor_parallel_size, drain_s)
    return plans


def application_policy(policy: Mapping[str, Any] | None, plans: Mapping[str, DeploymentPlan]) -> dict[str, Any] | None:
    """Ray's application-level autoscaling policy, checked; None when there is none.

    Raises:
        ConfigError: it cannot be used, or the service has nothing for it to decide.
    """
    if policy is None:
        return None
    try:
        resolved = resolve_policy("autoscaling_policy", policy, APPLICATION)
    except PolicyError as error:
        raise ConfigError(f"these settings cannot be used:\n  {error}") from error
    scaled = [plan for plan in plans.values() if plan.autoscaling is not None]
    if not scaled:
        raise ConfigError(
            "these settings cannot be used:\n  autoscaling_policy: it decides for stages that have `autoscaling` "
            "with their min_replicas and max_replicas, and none has"
        )
    for plan in scaled:
        if plan.autoscaling is not None and "policy" in plan.autoscaling:
            raise ConfigError(
                f"these settings cannot be used:\n  {plan.name}.autoscaling.policy: the application's "
                "autoscaling_policy would take its place: remove one of them"
            )
    return resolved


def total_resources(plans: Mapping[str, DeploymentPlan]) -> dict[str, float]:
    """Resources that the service takes with every stage at its most replicas."""
    total: dict[str, float] = {}
    for plan in plans.values():
        for name, amount in plan.resources.items():
            total[name] = total.get(name, 0.0) + amount * plan.max_replicas
    return total


def _plan(
    name: str, stage: StageConfig, num_ranks: int, drain_s: float, environment: Mapping[str, str] | None = None
) -> DeploymentPlan:
    return DeploymentPlan(
        name=name,
        num_replicas=stage.fixed_replicas,
        num_ranks=num_ranks,
        resources={resource: amount * num_ranks for resource, amount in stage.resources_per_rank.items()},
        autoscaling=None if stage.autoscaling is None else resolve_autoscaling(name, stage.autoscaling),
        max_ongoing_requests=stage.max_ongoing_requests,
        drain_s=drain_s,
        environment={**(environment or {}), **stage.environment},
    )
