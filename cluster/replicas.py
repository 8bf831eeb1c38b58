"""The classes that Ray Serve runs as replicas, but for the encoder's: thin shells around the plain workers.

Methods that the pipeline calls are generators, also where they give one item (see `cluster.ray_stages`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp
from vllm.outputs import RequestOutput

from cluster.autoscaling.publish import EngineSignals
from cluster.ingress.app import build_openai_app
from cluster.ingress.observation import RequestObserver
from cluster.ingress.observed_stages import ObservedDecodeStage, ObservedEncoderStage, ObservedPrefillStage
from cluster.metrics.engine_logger import stage_stat_logger
from cluster.metrics.stages import EngineObserver, engine_readings
from cluster.pipeline import Pipeline
from cluster.ray_stages import RayDecodeStage, RayEncoderStage, RayPrefillStage
from cluster.replica_process import ReplicaProcess, address_or_node, leave_process, metrics_export
from cluster.request_logs import log_as
from cluster.routing.costs import decode_cost, prefill_cost
from cluster.routing.reports import EngineReport, to_stats
from cluster.routing.senders import SenderAccount, UncountedTokens
from configs import TriptychConfig, embedding_fingerprint
from llm_workers.engine_config import EngineRole
from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from llm_workers.worker import LLMStats, LLMWorker
from transfer import ClientSettings, EmbeddingClient, WorkerLost, cluster_key

_STATUS_TIMEOUT_S = 5.0


class LLMReplica:
    """One prefill or decode worker."""

    def __init__(self, settings: dict[str, Any], role: EngineRole, host: str | None) -> None:
        config = TriptychConfig.model_validate(settings)
        self._process = ReplicaProcess(role, config.observability)
        self._placed = SenderAccount()
        self._signals = EngineSignals(EngineObserver(self._process.instruments, self._process.tracing, role))
        stat_loggers = [stage_stat_logger(role)] if config.observability.engine_metrics else []
        self._uncounted = UncountedTokens(self._placed, self._signals)
        self._worker = worker = LLMWorker(config, role, address_or_node(host), self._uncounted, stat_loggers)
        self._process.follow(lambda: engine_readings(worker.stats()))

    async def prefill(self, request: PrefillRequest, sender: str) -> AsyncGenerator[PrefillResult, None]:
        log_as(request.request_id)
        with self._placed.running(sender, prefill_cost(request)), _leaving_without_engine():
            yield await self._worker.prefill(request)

    async def decode(self, request: DecodeRequest, sender: str) -> AsyncGenerator[RequestOutput, None]:
        log_as(request.request_id)
        with self._placed.running(sender, decode_cost(request)), _leaving_without_engine():
            async for output in self._worker.decode(request):
                yield output

    async def release_kv(self, request_id: str, kv_params: KVParams) -> AsyncGenerator[None, None]:
        await self._worker.release_kv(request_id, kv_params)
        yield

    async def stats(self) -> LLMStats:
        return self._worker.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What policies of `cluster.autoscaling` go by; Ray asks now and then, where the stage is scaled."""
        return self._signals.read(self._worker.stats())

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the routers of `cluster.routing` go by; Ray asks every `REPORT_PERIOD_S`."""
        stats = self._worker.stats()
        return to_stats(
            EngineReport(
                costs=self._placed.costs(),
                kv_cache_tokens=stats.kv_cache_tokens,
                kv_cache_use=round(stats.kv_cache_use, 3),
                uncounted_tokens=round(self._uncounted.of(stats.kv_cache_use * stats.kv_cache_tokens)),
            )
        )

    async def check_health(self) -> None:
        with _leaving_without_engine():
            await self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._worker.close()
        if hasattr(self, "_process"):
            self._process.close()


@contextlib.contextmanager
def _leaving_without_engine() -> Iterator[None]:
    """What the worker of this process raises is about its own engine."""
    try:
        yield
    except WorkerLost:
        leave_process()
        raise


class IngressReplica:
    """The OpenAI application over the handles of the stages."""

    def __init__(
        self,
        settings: dict[str, Any],
        encoder: DeploymentHandle | None,
        prefill: DeploymentHandle | None,
        decode: DeploymentHandle,
    ) -> None:
        self._config = TriptychConfig.model_validate(settings)
        stages = {"encoder": encoder, "prefill": prefill, "decode": decode}
        self._handles = {name: handle for name, handle in stages.items() if handle is not None}
        self._process = ReplicaProcess("ingress", self._config.observability)
        self._observer = RequestObserver(self._process.instruments, self._process.tracing)
        curve = cluster_key(self._config.transfer.curve_key_file)
        self._leases = EmbeddingClient(embedding_fingerprint(self._config), ClientSettings(curve=curve))
        self._pipeline = Pipeline(
            ObservedEncoderStage(RayEncoderStage(encoder), self._observer) if encoder is not None else None,
            ObservedPrefillStage(RayPrefillStage(prefill), self._observer) if prefill is not None else None,
            ObservedDecodeStage(RayDecodeStage(decode), self._observer),
            attempts=self._config.limits.encode_attempts,
            busy_wait_s=self._config.limits.busy_wait_s,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app: ASGIApp = build_openai_app(
            self._config, self._pipeline, self._leases, self._status, metrics_export, self._observer
        )
        return app

    async def _status(self) -> dict[str, list[Any]]:
        answers = await asyncio.gather(*(_stats_of(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, answers, strict=True))

    def __del__(self) -> None:
        if hasattr(self, "_leases"):  # Ray runs this after a failed start as well.
            self._leases.close()
        if hasattr(self, "_process"):
            self._process.close()


async def _stats_of(handle: DeploymentHandle) -> list[Any]:
    """The statistics of the deployment's replicas; those that do not answer in time are left out."""
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            answers = await handle.broadcast("stats").results_async(return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [stats for stats in answers if not isinstance(stats, BaseException)]
