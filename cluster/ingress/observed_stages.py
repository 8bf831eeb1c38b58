"""The stages as the pipeline calls them, with every call counted, timed and made a span of its request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace

from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from vllm.outputs import RequestOutput

from cluster.ingress.observation import RequestObserver, current_observation
from cluster.metrics import registry
from cluster.stages import DecodeStage, EncoderStage, PrefillStage
from cluster.tracing import traceparent_of
from llm_workers.messages import DecodeRequest, KVParams, PrefillRequest, PrefillResult
from transfer import EncodeReply, EncodeRequest, TriptychError

_OK, _CANCELLED = "ok", "cancelled"


@dataclass(slots=True)
class _Call:
    """One call under way; `answered` is when the stage's answer began."""

    span: Span
    outcome: str = _CANCELLED
    answered: float = 0.0

    @property
    def traceparent(self) -> str | None:
        """What the stage needs to make its spans children of this call's."""
        return traceparent_of(self.span)


class _Calls:
    """Counts the calls to one stage."""

    def __init__(self, observer: RequestObserver, callee: str) -> None:
        self._observer = observer
        self._callee = callee

    @contextlib.contextmanager
    def one(self) -> Iterator[_Call]:
        """One call: a span below the request's, a count by its outcome, its time if it was answered."""
        observation = current_observation()
        span = self._observer.tracing.begin(
            self._callee, observation.span if observation is not None else None, SpanKind.CLIENT
        )
        call = _Call(span)
        begun = time.monotonic()
        try:
            yield call
            call.outcome = _OK
        except (asyncio.CancelledError, GeneratorExit):
            if observation is not None and call.outcome != _OK:
                observation.cancelled = True
            raise
        except TriptychError as error:
            call.outcome = error.code
            span.set_status(Status(StatusCode.ERROR, error.code))
            if observation is not None:
                observation.error_code = error.code
            raise
        finally:
            span.set_attribute("triptych.outcome", call.outcome)
            span.end()
            labels = {"callee": self._callee}
            instruments = self._observer.instruments
            instruments.count(registry.STAGE_CALLS, labels={**labels, "outcome": call.outcome})
            if call.outcome == _OK:
                if observation is not None:
                    observation.error_code = None  # Tried again, and well.
                instruments.observe(registry.STAGE_CALL_DURATION, (call.answered or time.monotonic()) - begun, labels)


class ObservedEncoderStage:
    """An EncoderStage around another one."""

    def __init__(self, stage: EncoderStage, observer: RequestObserver) -> None:
        self._stage = stage
        self._calls = _Calls(observer, "encoder")

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        observation = current_observation()
        if observation is not None:
            observation.modalities.update(item.modality for item in request.items)
        with self._calls.one() as call:
            return await self._stage.encode(replace(request, traceparent=call.traceparent))


class ObservedPrefillStage:
    """A PrefillStage around another one."""

    def __init__(self, stage: PrefillStage, observer: RequestObserver) -> None:
        self._stage = stage
        self._calls = _Calls(observer, "prefill")

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        observation = current_observation()
        with self._calls.one() as call:
            result = await self._stage.prefill(replace(request, traceparent=call.traceparent))
            if observation is not None and result.gives_first_token:
                observation.see_output(request.request_id, request.params, result.output)
            return result


class ObservedDecodeStage:
    """A DecodeStage around another one."""

    def __init__(self, stage: DecodeStage, observer: RequestObserver) -> None:
        self._stage = stage
        self._calls = _Calls(observer, "decode")

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        observation = current_observation()
        with self._calls.one() as call:
            outputs = self._stage.decode(replace(request, traceparent=call.traceparent))
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    call.answered = call.answered or time.monotonic()
                    if observation is not None:
                        observation.see_output(request.request_id, request.params, output)
                    if output.finished:
                        call.outcome = _OK
                    yield output

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        await self._stage.release_kv(request_id, kv_params, timeout_s)
