"""Starts a service on a Ray cluster, one of its own or a running one, and ends exactly what it started."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, DeploymentStatusOverview, ServeApplicationSchema, ServeDeploySchema

from cluster.app import build_service
from cluster.plan import application_policy, plan_deployments
from cluster.start_failures import explain_failure, failed_attempts
from configs import ConfigError, TriptychConfig

logger = logging.getLogger(__name__)

APP_NAME = "triptych"
_LOOPBACK = "127.0.0.1"
_POLL_S = 0.5
_REPEAT_S = 10.0
_DELETE_TIMEOUT_S = 30.0
_METRICS_INTERVAL_MS = 5000
"""How old exported metrics are at most; Ray's own 10 s are for clusters of many nodes."""


class StartupFailed(RuntimeError):
    """The service did not come up; the message says which deployment and why."""


class StartupStopped(RuntimeError):
    """The service was told to stop before it was up."""


@dataclass(frozen=True)
class ServiceAddress:
    """Where a running service answers."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Base of the HTTP endpoints."""
        return f"http://{self.host}:{self.port}"


class Service:
    """One service. `start`, then `close`; `close` is idempotent and safe after a failed start.

    Without an address a Ray cluster of its own is started on this machine, with the HTTP front on loopback alone, and
    ended with the service; with one, the running cluster is joined and only the application is removed from it.
    """

    def __init__(self, config: TriptychConfig, *, port: int, ray_address: str | None) -> None:
        self._config = config
        self._port = port
        self._ray_address = ray_address
        self._deployed = False
        self._running = False

    def start(
        self,
        on_progress: Callable[[str], None],
        timeout_s: float = 1800.0,
        stop: threading.Event | None = None,
    ) -> ServiceAddress:
        """Deploy and wait until every deployment serves.

        Args:
            on_progress: takes one line whenever something changes, and now and then while nothing does.
            stop: ends the start between two of its steps when set; `close` is still to be called.

        Raises:
            StartupFailed: a deployment failed, or `timeout_s` passed.
            StartupStopped: `stop` was set.
        """
        deadline = time.monotonic() + timeout_s
        stop = stop or threading.Event()
        policy = self._application_policy()
        self._start_ray(on_progress)
        _raise_if(stop)
        on_progress("starting Ray Serve")
        serve.start(
            http_options={"host": _LOOPBACK if self._ray_address is None else "0.0.0.0", "port": self._port},
            proxy_location=ProxyLocation.HeadOnly if self._ray_address is None else ProxyLocation.EveryNode,
        )
        _raise_if(stop)
        if APP_NAME in serve.status().applications:
            raise StartupFailed(f"this Ray cluster runs an application named {APP_NAME!r} already")
        on_progress("deploying")
        self._deploy(policy)
        self._wait(on_progress, deadline, stop)
        self._running = True
        return ServiceAddress(_LOOPBACK, self._port) if self._ray_address is None else _front()

    def close(self) -> None:
        """End what `start` began; a cluster of its own ends whatever happens."""
        if not ray.is_initialized():
            return
        try:
            # In a cluster of its own, replicas that are still starting would be waited for; they end with Ray.
            if self._deployed and (self._running or self._ray_address is not None):
                self._delete()
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the application could not be removed in order: %s", error)
        ray.shutdown()

    def _application_policy(self) -> dict[str, Any] | None:
        try:
            policy = application_policy(self._config.autoscaling_policy, plan_deployments(self._config))
        except ConfigError as error:
            raise StartupFailed(str(error)) from error
        if policy is not None and self._ray_address is not None:
            # Applying a Serve config file takes away all applications of earlier ones that it does not name.
            raise StartupFailed(
                "autoscaling_policy: on a running Ray cluster an application gets a policy from a Serve config file "
                "alone; use 'serve deploy' as configs/serve_autoscaling.yaml does"
            )
        return policy

    def _deploy(self, policy: dict[str, Any] | None) -> None:
        """Hand the application to Serve; with a policy of its own the way of a Serve config file is the only one."""
        host = _LOOPBACK if self._ray_address is None else None
        self._deployed = True
        if policy is None:
            serve.run_many(
                [serve.RunTarget(build_service(self._config, host), name=APP_NAME, route_prefix="/")],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            return
        application = ServeApplicationSchema(
            name=APP_NAME,
            route_prefix="/",
            import_path="cluster.app:build_app",
            args=self._config.model_dump(mode="json", exclude_none=True, exclude={"autoscaling_policy"}),
            autoscaling_policy=policy,
        )
        _get_global_client().deploy_apps(ServeDeploySchema(applications=[application]))

    def _delete(self) -> None:
        """Take the application away; what goes on has `_DELETE_TIMEOUT_S`, in a joined cluster all of its own time."""
        serve.delete(APP_NAME, _blocking=False)
        deadline = time.monotonic() + _DELETE_TIMEOUT_S
        while APP_NAME in serve.status().applications and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _start_ray(self, on_progress: Callable[[str], None]) -> None:
        if self._ray_address is None:
            on_progress("starting Ray on this machine")
            # "local": a cluster of somebody else on this machine would be joined otherwise.
            # Ray runs its workers at low priority; here they are what the machine is for.
            options = {
                "address": "local",
                "include_dashboard": False,
                "_node_ip_address": _LOOPBACK,
                "_system_config": {"worker_niceness": 0, "metrics_report_interval_ms": _METRICS_INTERVAL_MS},
            }
        else:
            on_progress(f"joining the Ray cluster at {self._ray_address}")
            options = {"address": self._ray_address}
        try:
            ray.init(**options, logging_level="WARNING", log_to_driver=False)
        except Exception as error:  # Ray raises the bare class where a process of its own does not come up in time.
            if self._ray_address is None:
                raise StartupFailed(f"Ray did not start: {error}") from error
            raise StartupFailed(
                f"no Ray cluster can be joined at {self._ray_address}: {error}\n"
                "where the cluster wants a token, copy its ~/.ray/auth_token to this node and set RAY_AUTH_MODE=token"
            ) from error

    def _wait(self, on_progress: Callable[[str], None], deadline: float, stop: threading.Event) -> None:
        shown, shown_at = "", 0.0
        retried: dict[str, str] = {}
        while True:
            _raise_if(stop)
            application = serve.status().applications.get(APP_NAME)
            if application is not None:
                line = ", ".join(f"{name} {_state(status)}" for name, status in application.deployments.items())
                now = time.monotonic()
                if line and (line != shown or now > shown_at + _REPEAT_S):
                    on_progress(line)
                    shown, shown_at = line, now
                if application.status is ApplicationStatus.RUNNING:
                    return
                if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                    raise StartupFailed(explain_failure(application, _logs_folder()))
                for name, reason in failed_attempts(application.deployments).items():
                    if retried.get(name) != reason:
                        on_progress(f"{name} failed to start and is tried again: {reason}")
                        retried[name] = reason
            if time.monotonic() > deadline:
                raise StartupFailed(f"the service was not ready in time: {shown}\nlogs: {_logs_folder()}")
            stop.wait(_POLL_S)


def _raise_if(stop: threading.Event) -> None:
    if stop.is_set():
        raise StartupStopped


def _state(status: DeploymentStatusOverview) -> str:
    """'ready' or how many replicas are."""
    running = status.replica_states.get("RUNNING", 0)
    total = sum(status.replica_states.values())
    return "ready" if total and running == total else f"starting ({running}/{max(total, 1)})"


def _front() -> ServiceAddress:
    """Where a joined cluster answers: on this node if it has a proxy; Serve may run there already, on another port."""
    port = _get_global_client().http_config.port
    proxies = serve.status().proxies
    if ray.get_runtime_context().get_node_id() in proxies:
        return ServiceAddress(_LOOPBACK, port)
    hosts = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in proxies]
    return ServiceAddress(hosts[0] if hosts else _LOOPBACK, port)


def _logs_folder() -> str:
    context = ray.get_runtime_context()
    return f"{context.get_temp_dir()}/{context.get_session_name()}/logs"
