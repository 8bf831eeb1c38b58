"""What the ingress measures of each request: how long until its first token, per token and in all, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry.trace import Span, SpanKind
from vllm.exceptions import VLLMError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cluster.metrics import registry
from cluster.metrics.instruments import Instruments
from cluster.tracing import Tracing
from transfer import Busy, QueueFull

logger = logging.getLogger(__name__)

GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
_NO_ROOM = (None, Busy.code, QueueFull.code)
"""Errors with which a 503 is for want of room: those of full stages, or none where no stage was asked at all."""

_current: ContextVar[RequestObservation | None] = ContextVar("triptych_observation", default=None)


def current_observation() -> RequestObservation | None:
    """What is being noted of the request that this task works for; None outside one."""
    return _current.get()


@dataclass(slots=True)
class _Sequence:
    """One streamed sequence: when its outputs came, and how many tokens there are so far."""

    first: float
    last: float = 0.0
    num_tokens: int = 0


class RequestObservation:
    """One HTTP request, from its arrival to its end.

    Attributes:
        error_code: of the last failure that was not made good.
        told: what vLLM's application was told of it.
        cancelled: a call to a stage was given up.
        disconnected: the client went before its answer was complete.
    """

    def __init__(self, request_id: str, path: str, span: Span) -> None:
        self.request_id = request_id
        self.path = path
        self.span = span
        self.arrived = time.monotonic()
        self.modalities: set[str] = set()
        self.error_code: str | None = None
        self.told: VLLMError | None = None
        self.cancelled = False
        self.disconnected = False
        self._sequences: dict[str, _Sequence] = {}

    @property
    def modality(self) -> str:
        """The label: text, the one kind of media in the request, or mixed."""
        return "mixed" if len(self.modalities) > 1 else next(iter(self.modalities), "text")

    def fail(self, code: str, told: VLLMError) -> None:
        """The request has failed for good, by an error of this code; `told` is what vLLM's application gets of it."""
        if self.told is None:  # What fails after that fails because of it.
            self.error_code, self.told = code, told

    def see_output(self, sequence_id: str, params: SamplingParams, output: RequestOutput) -> None:
        """An output of one sequence has come; only streamed ones tell when tokens came."""
        if params.output_kind is RequestOutputKind.FINAL_ONLY:
            return
        now = time.monotonic()
        sequence = self._sequences.setdefault(sequence_id, _Sequence(now))
        num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
        delta = params.output_kind is RequestOutputKind.DELTA
        sequence.num_tokens = sequence.num_tokens + num_tokens if delta else num_tokens
        sequence.last = now

    def first_token_s(self) -> float | None:
        """Seconds from arrival to the first token of any sequence."""
        return min((s.first for s in self._sequences.values()), default=self.arrived) - self.arrived or None

    def token_times_s(self) -> list[float]:
        """Seconds per token after the first, of each sequence that has more than one."""
        return [(s.last - s.first) / (s.num_tokens - 1) for s in self._sequences.values() if s.num_tokens > 1]

    def was_shed(self, status: int | None) -> bool:
        """Whether the answer of this status turned the request away for want of room."""
        return status == 429 or (status == 503 and self.error_code in _NO_ROOM)

    def outcome(self, status: int | None, complete: bool) -> str:
        """How the request ended, for the metric `triptych_requests_total`.

        Args:
            status: of the answer; None when there was none.
            complete: whether the answer was sent to its end.
        """
        if self.disconnected:
            return "cancelled"  # Whatever was answered then, and vLLM answers 200, nobody has read it.
        if (status is not None and 400 <= status < 500) or self.was_shed(status):
            return "rejected"
        if (status is not None and status >= 500) or (self.error_code is not None and status is not None):
            return "failed"
        return "finished" if complete and not self.cancelled and status is not None else "cancelled"


class RequestObserver:
    """Makes the observations of one ingress replica, and metrics, spans and log lines of them."""

    def __init__(self, instruments: Instruments, tracing: Tracing) -> None:
        self.instruments = instruments
        self.tracing = tracing
        self._num_running = 0

    def begin(self, request_id: str, method: str, path: str, traceparent: str | None) -> RequestObservation:
        """A request has arrived. `traceparent` is the caller's own, if it sent one."""
        span = self.tracing.begin(f"{method} {path}", traceparent, SpanKind.SERVER)
        span.set_attributes(
            {"http.request.method": method, "url.path": path, "triptych.request_id": request_id},
        )
        observation = RequestObservation(request_id, path, span)
        _current.set(observation)
        self._num_running += 1
        self.instruments.set(registry.REQUESTS_RUNNING, self._num_running)
        return observation

    def end(
        self, observation: RequestObservation, status: int | None, complete: bool, retries: Mapping[str, int]
    ) -> None:
        """The request is over; `status` and `complete` as for its outcome, `retries` by the codes of their causes."""
        self._num_running -= 1
        self.instruments.set(registry.REQUESTS_RUNNING, self._num_running)
        duration_s = time.monotonic() - observation.arrived
        outcome = observation.outcome(status, complete)
        if status is not None:
            observation.span.set_attribute("http.response.status_code", status)
        observation.span.set_attribute("triptych.outcome", outcome)
        observation.span.end()
        for code, number in retries.items():
            self.instruments.count(registry.RETRIES, number, {"code": code})
        if observation.path not in GENERATION_PATHS:
            return
        logger.info("%s ended: %s, status %s, %.3f s", observation.path, outcome, status, duration_s)
        labels = {"modality": observation.modality}
        self.instruments.count(registry.REQUESTS, labels={**labels, "outcome": outcome})
        if observation.was_shed(status):
            self.instruments.count(registry.SHED, labels={"status": str(status)})
        if (first_token_s := observation.first_token_s()) is not None:
            self.instruments.observe(registry.TIME_TO_FIRST_TOKEN, first_token_s, labels)
        for token_s in observation.token_times_s():
            self.instruments.observe(registry.TIME_PER_OUTPUT_TOKEN, token_s, labels)
        if outcome == "finished":
            self.instruments.observe(registry.REQUEST_DURATION, duration_s, labels)
