"""The classes that Ray Serve runs as replicas: thin shells around the plain workers."""

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

from cluster.ingress.app import build_openai_app
from cluster.pipeline import Pipeline
from cluster.ray_stages import RayDecodeStage, RayEncoderStage, RayPrefillStage
from configs import TriptychConfig, embedding_fingerprint
from encoder_workers.worker import EncoderStats, EncoderWorker
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
        self._worker = EncoderWorker(TriptychConfig.model_validate(settings), address_or_node(host))

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        return await self._worker.encode(request)

    async def stats(self) -> EncoderStats:
        return self._worker.stats()

    async def check_health(self) -> None:
        self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._worker.close()


class LLMReplica:
    """One prefill or decode worker."""

    def __init__(self, settings: dict[str, Any], role: EngineRole, host: str | None) -> None:
        self._worker = LLMWorker(TriptychConfig.model_validate(settings), role, address_or_node(host))

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        return await self._worker.prefill(request)

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        async for output in self._worker.decode(request):
            yield output

    async def release_kv(self, request_id: str, kv_params: KVParams) -> None:
        await self._worker.release_kv(request_id, kv_params)

    async def stats(self) -> LLMStats:
        return self._worker.stats()

    async def check_health(self) -> None:
        await self._worker.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # Ray runs this after a failed start as well.
            self._worker.close()


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
        curve = cluster_key(self._config.transfer.curve_key_file)
        self._leases = EmbeddingClient(embedding_fingerprint(self._config), ClientSettings(curve=curve))
        self._pipeline = Pipeline(
            RayEncoderStage(encoder) if encoder is not None else None,
            RayPrefillStage(prefill) if prefill is not None else None,
            RayDecodeStage(decode),
            attempts=self._config.limits.encode_attempts,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app: ASGIApp = build_openai_app(self._config, self._pipeline, self._release, self._status)
        return app

    async def _status(self) -> dict[str, list[Any]]:
        answers = await asyncio.gather(*(_stats_of(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, answers, strict=True))

    def _release(self, ref: EmbeddingRef) -> None:
        self._leases.release(ref)

    def __del__(self) -> None:
        self._leases.close()


async def _stats_of(handle: DeploymentHandle) -> list[Any]:
    """The statistics of the deployment's replicas; those that do not answer in time are left out."""
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            answers = await handle.broadcast("stats").results_async(return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):
        return []
    return [stats for stats in answers if not isinstance(stats, BaseException)]
