"""The stages over Ray Serve handles: Ray's errors become ours, cancelling here cancels there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from vllm.outputs import RequestOutput

from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from transfer import Busy, EncodeReply, EncodeRequest, EncoderLost, RetryableError, TriptychError, WorkerLost


class RayEncoderStage:
    """Encoder replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        reply: EncodeReply = await _call(self._handle.encode.remote(request), EncoderLost)
        return reply


class RayPrefillStage:
    """Prefill replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        result: PrefillResult = await _call(self._handle.prefill.remote(request), WorkerLost)
        return result


class RayDecodeStage:
    """Decode replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        response = self._streaming.decode.remote(request)
        finished = False
        try:
            async for output in response:
                yield output
            finished = True
        except (RayError, RayServeException) as error:
            finished = True
            raise _typed(error, WorkerLost) from error
        finally:
            if not finished:
                response.cancel()

    async def release_kv(self, request_id: str, kv_params: KVParams) -> None:
        await _call(self._handle.release_kv.remote(request_id, kv_params), WorkerLost)


async def _call(response: Any, lost: type[RetryableError]) -> Any:
    """Await one Serve call."""
    try:
        return await response
    except (RayError, RayServeException) as error:
        raise _typed(error, lost) from error
    except asyncio.CancelledError:
        response.cancel()
        raise


def _typed(error: Exception, lost: type[RetryableError]) -> TriptychError:
    """The typed error behind one of Ray's."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, TriptychError):
            return cause
        return TriptychError(f"{type(cause).__name__}: {cause}")
    if isinstance(error, BackPressureError):
        return Busy("all replicas of a stage have as many requests as they may")
    if isinstance(error, RayActorError | DeploymentUnavailableError | TaskCancelledError):
        return lost(f"a replica was lost: {type(error).__name__}")
    return lost(f"{type(error).__name__}: {error}")
