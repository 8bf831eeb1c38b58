"""The classes that Ray Serve runs as replicas: thin shells around the plain workers.

Methods that the pipeline calls are generators, also where they give one item (see `cluster.ray_stages`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp
from vllm.outputs import RequestOutput

from cluster.autoscaling.publish import EncoderSignals, EngineSignals
from cluster.ingress.app import build_openai_app
from cluster.ingress.observation import RequestObserver
from cluster.ingress.observed_stages import ObservedDecodeStage, ObservedEncoderStage, ObservedPrefillStage
from cluster.metrics.engine_logger import stage_stat_logger
from cluster.metrics.stages import EncoderObserver, EngineObserver, encoder_readings, engine_readings
from cluster.pipeline import Pipeline
from cluster.ray_stages import RayDecodeStage, RayEncoderStage, RayPrefillStage
from cluster.replica_process import ReplicaProcess, metrics_endpoints
from cluster.request_logs import log_as
from configs import TriptychConfig, embedding_fingerprint
from encoder_workers.batcher import BatchTimes
from encoder_workers.stats import EncoderStats
from encoder_workers.worker import EncoderWorker
from llm_workers.engine_config import EngineRole
from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from llm_workers.worker import LLMStats, LLMWorker
from transfer import ClientSettings, EmbeddingClient, EmbeddingRef, EncodeReply, EncodeRequest, cluster_key

_STATUS_TIMEOUT_S = 5.0


def address_or_node(host: str | None) -> str:
    """`host` if given, else the address of this node within the cluster."""
    return host or str(ray.util.get_node_ip_address())


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

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._worker.close()
        if hasattr(self, "_process"):
            self._process.close()


class LLMReplica:
    """One prefill or decode worker."""

    def __init__(self, settings: dict[str, Any], role: EngineRole, host: str | None) -> None:
        config = TriptychConfig.model_validate(settings)
        self._process = ReplicaProcess(role, config.observability)
        self._signals = EngineSignals(EngineObserver(self._process.instruments, self._process.tracing, role))
        stat_loggers = [stage_stat_logger(role)] if config.observability.engine_metrics else []
        self._worker = worker = LLMWorker(config, role, address_or_node(host), self._signals, stat_loggers)
        self._process.follow(lambda: engine_readings(worker.stats()))

    async def prefill(self, request: PrefillRequest) -> AsyncGenerator[PrefillResult, None]:
        log_as(request.request_id)
        yield await self._worker.prefill(request)

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        log_as(request.request_id)
        async for output in self._worker.decode(request):
            yield output

    async def release_kv(self, request_id: str, kv_params: KVParams) -> AsyncGenerator[None, None]:
        await self._worker.release_kv(request_id, kv_params)
        yield

    async def stats(self) -> LLMStats:
        return self._worker.stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As of an encoder."""
        return self._signals.read(self._worker.stats())

    async def check_health(self) -> None:
        await self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._worker.close()
        if hasattr(self, "_process"):
            self._process.close()


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
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app: ASGIApp = build_openai_app(
            self._config, self._pipeline, self._release, self._status, metrics_endpoints, self._observer
        )
        return app

    async def _status(self) -> dict[str, list[Any]]:
        answers = await asyncio.gather(*(_stats_of(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, answers, strict=True))

    def _release(self, ref: EmbeddingRef) -> None:
        self._leases.release(ref)

    def __del__(self) -> None:
        self._leases.close()
        self._process.close()


async def _stats_of(handle: DeploymentHandle) -> list[Any]:
    """The statistics of the deployment's replicas; those that do not answer in time are left out."""
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            answers = await handle.broadcast("stats").results_async(return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [stats for stats in answers if not isinstance(stats, BaseException)]
