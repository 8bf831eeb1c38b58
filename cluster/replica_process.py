"""What every replica's process has besides its worker: instruments, a tracer, and logs with request ids."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

import ray
from ray import serve

from cluster.metrics.follower import Reading, StatsFollower
from cluster.metrics.instruments import Instruments
from cluster.metrics.scrape import MetricsExport
from cluster.request_logs import configure_logging
from cluster.tracing import Tracing
from configs import ObservabilityConfig

logger = logging.getLogger(__name__)
_LEAVE_S = 0.2


class ReplicaProcess:
    """Made first in a replica, closed last; `close` is idempotent."""

    def __init__(self, stage: str, settings: ObservabilityConfig) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        configure_logging(stage, settings.log_level)
        self.instruments = Instruments(stage, replica)
        self.tracing = Tracing(settings, stage, replica)
        self._follower: StatsFollower | None = None

    def follow(self, read: Callable[[], Sequence[Reading]]) -> None:
        """Export what `read` gives, once a second from now on."""
        self._follower = StatsFollower(self.instruments, read)

    def close(self) -> None:
        """Stop exporting; spans not sent yet are sent."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self.tracing.close()


def leave_process() -> None:
    """End this replica's process, as soon as the answers under way have gone out; Ray starts another one.

    For a replica that is of no use any more. Serve would send it calls until its third failed health check, and more
    of them than to others, since what fails at once has room again.
    """
    logger.error("this replica ends its process")
    asyncio.get_running_loop().call_later(_LEAVE_S, os._exit, 1)


def address_or_node(host: str | None) -> str:
    """`host` if given, else the address of this node within the cluster."""
    return host or str(ray.util.get_node_ip_address())


def metrics_export() -> MetricsExport:
    """Where the nodes of this cluster export their metrics, and how often their processes bring them there."""
    endpoints = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in ray.nodes()
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]
    return MetricsExport(endpoints, ray._raylet.Config.metrics_report_interval_ms() / 1000)
