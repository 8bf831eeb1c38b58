"""One Ray Serve deployment of a plan and a replica class."""

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from cluster.plan import DeploymentPlan


def deployment_of(
    plan: DeploymentPlan, replica_class: type, router: RequestRouterConfig | None = None
) -> serve.Deployment:
    """One deployment as planned; without a router of its own it has Serve's, by the shortest of two queues."""
    options: dict[str, Any] = {"num_replicas": plan.num_replicas}
    if plan.autoscaling is not None:
        options = {"autoscaling_config": dict(plan.autoscaling)}
    if router is not None:
        options["request_router_config"] = router
    return serve.deployment(
        replica_class,
        name=plan.name,
        ray_actor_options=plan.actor_options(),
        max_ongoing_requests=plan.max_ongoing_requests,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=plan.drain_s,
        max_surge_percent=plan.max_surge_percent,
        # One line per call of each stage says little and costs time on the way of every request.
        logging_config={"enable_access_log": False},
        **options,
    )
