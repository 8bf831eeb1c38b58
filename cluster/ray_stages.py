"""The stages over Ray Serve handles: Ray's errors become ours, cancelling here cancels there.

Calls go by Serve's gRPC transport, not by object references: a call then costs half, a streamed item a quarter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from vllm.outputs import RequestOutput

from cluster.routing.senders import SENDER
from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from transfer import (
    Busy,
    DeadlineExceeded,
    EncodeReply,
    EncodeRequest,
    EncoderLost,
    RetryableError,
    TriptychError,
    WorkerLost,
)

# A replica ends an overdue request itself and says so; the caller waits that much longer for it.
_GRACE_S = 5.0
_ending: set[asyncio.Task[None]] = set()
"""Streams whose only item is there: the loop itself keeps no reference to its tasks."""


class RayEncoderStage:
    """Encoder replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = _direct(handle)

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        reply: EncodeReply = await _single(self._handle.encode.remote(request), EncoderLost, request.timeout_s)
        return reply


class RayPrefillStage:
    """Prefill replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = _direct(handle)

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        result: PrefillResult = await _single(
            self._handle.prefill.remote(request, SENDER), WorkerLost, request.timeout_s
        )
        return result


class RayDecodeStage:
    """Decode replicas behind a handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = _direct(handle)

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        response = self._handle.decode.remote(request, SENDER)
        async with contextlib.aclosing(_stream(response, WorkerLost, request.timeout_s)) as outputs:
            async for output in outputs:
                yield output

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        await _single(self._handle.release_kv.remote(request_id, kv_params), WorkerLost, timeout_s)


def _direct(handle: DeploymentHandle) -> DeploymentHandle:
    """The handle for calls that stream: only these tell the router at once which replica has taken them."""
    return handle.options(
        stream=True, _by_reference=False, request_serialization="pickle", response_serialization="pickle"
    )


async def _single(response: Any, lost: type[RetryableError], timeout_s: float) -> Any:
    """The one item of a call that streams a single one."""
    stream = _stream(response, lost, timeout_s)
    try:
        item = await anext(stream)
    except StopAsyncIteration as error:
        raise lost("a replica ended the call without an answer") from error
    # A stream that is left is cancelled, with a message to a replica that has done all it should; its end is read, but
    # nobody waits for it.
    task = asyncio.ensure_future(_read_to_end(stream))
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    return item


async def _read_to_end(stream: AsyncGenerator[Any, None]) -> None:
    with contextlib.suppress(TriptychError):
        async for _ in stream:
            pass


async def _stream(response: Any, lost: type[RetryableError], timeout_s: float) -> AsyncGenerator[Any, None]:
    """The items of a Serve call; closing the generator before its end cancels the call.

    Args:
        timeout_s: time for the whole call; the replica keeps it itself, but not while the call waits for a replica.

    Raises:
        TriptychError: what the replica raised, or `lost` when it is gone.
        DeadlineExceeded: `timeout_s` and a little passed.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s + _GRACE_S
    ended = False
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                item = await anext(response)
            yield item
            # Items that are there already do not suspend: a caller that lags would keep the loop to itself, and what it
            # has read would leave this process at the stream's end.
            await asyncio.sleep(0)
    except StopAsyncIteration:
        ended = True
    except asyncio.CancelledError as error:
        if _is_cancelled_here():
            raise
        # The replica's own cancellation, passed on as an exception: it is being shut down.
        ended = True
        raise lost("a replica ended the call: it is shutting down") from error
    except TimeoutError as error:
        raise DeadlineExceeded("the request's time ended while it waited for a replica") from error
    except Exception as error:
        ended = True
        raise _typed(error, lost) from error
    finally:
        if not ended:
            response.cancel()


def _is_cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _typed(error: Exception, lost: type[RetryableError]) -> TriptychError:
    """The typed error behind one of Ray's or of the replica's."""
    if isinstance(error, TriptychError):
        return error
    if isinstance(error, RayTaskError):
        return _typed(error.cause, lost) if isinstance(error.cause, Exception) else TriptychError(str(error))
    if isinstance(error, BackPressureError):
        return Busy("all replicas of a stage have as many requests as they may")
    if isinstance(error, RayActorError | DeploymentUnavailableError | TaskCancelledError):
        return lost(f"a replica was lost: {type(error).__name__}")
    if isinstance(error, RayError | RayServeException | AioRpcError):
        return lost(f"{type(error).__name__}: {error}")
    return TriptychError(f"{type(error).__name__}: {error}")
