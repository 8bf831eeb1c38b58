"""The class that Ray Serve runs as an encoder's replica: a thin shell around the plain worker.

It stands alone because it needs no vLLM, whose import would be most of the time that a new replica takes to start.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from cluster.autoscaling.publish import EncoderSignals
from cluster.metrics.stages import EncoderObserver, encoder_readings
from cluster.replica_process import ReplicaProcess, address_or_node
from cluster.request_logs import log_as
from cluster.routing.reports import EncoderReport, to_stats
from configs import TriptychConfig
from encoder_workers.batcher import BatchTimes
from encoder_workers.stats import EncoderStats
from encoder_workers.worker import EncoderWorker
from transfer import EncodeReply, EncodeRequest

_COLLECT_TIMEOUT_S = 20.0
_COLLECT_POLL_S = 0.05


class EncoderReplica:
    """One encoder worker."""

    def __init__(self, settings: dict[str, Any], host: str | None) -> None:
        config = TriptychConfig.model_validate(settings)
        self._process = ReplicaProcess("encoder", config.observability)
        observer = EncoderObserver(self._process.instruments, self._process.tracing)
        self._signals = signals = EncoderSignals()

        def pass_ended(times: BatchTimes) -> None:
            signals.pass_ended(times)
            observer.pass_ended(times)

        self._worker = worker = EncoderWorker(config, address_or_node(host), pass_ended)
        self._process.follow(lambda: encoder_readings(worker.stats()))

    async def encode(self, request: EncodeRequest) -> AsyncGenerator[EncodeReply, None]:
        log_as(request.request_id)
        reply = await self._worker.encode(request)
        self._signals.took(reply)
        yield reply

    async def stats(self) -> EncoderStats:
        return self._worker.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What policies of `cluster.autoscaling` go by; Ray asks now and then, where the stage is scaled."""
        return self._signals.read(self._worker.stats())

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the routers of `cluster.routing` go by; Ray asks every `REPORT_PERIOD_S`."""
        stats = self._worker.stats()
        mean = stats.total_work / stats.num_taken if stats.num_taken else 0.0
        return to_stats(EncoderReport(round(stats.pending_work), round(mean), stats.num_taken))

    def _wait_for_collection(self) -> None:
        """Let what was promised be fetched: for Ray a call has ended with its tickets. No more calls come now."""
        deadline = time.monotonic() + _COLLECT_TIMEOUT_S
        while self._worker.stats().num_leases and time.monotonic() < deadline:
            time.sleep(_COLLECT_POLL_S)

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._wait_for_collection()
            self._worker.close()
        if hasattr(self, "_process"):
            self._process.close()
