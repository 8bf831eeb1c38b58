"""OpenTelemetry spans of requests, from the ingress into the stages; without an endpoint nothing is made or sent.

The context travels in the typed requests as `traceparent` (W3C Trace Context). Workers know nothing of OpenTelemetry:
they say when something happened on the monotonic clock, and the replica around them makes spans of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from configs import ObservabilityConfig

_TRACEPARENT = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()

Attributes = Mapping[str, str | int | float]


class Tracing:
    """The tracer of one process. `close` sends what is left and is idempotent."""

    def __init__(self, settings: ObservabilityConfig, stage: str, replica: str) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        if settings.otlp_endpoint is not None:
            resource = Resource.create({"service.name": f"triptych-{stage}", "service.instance.id": replica})
            self._provider = TracerProvider(
                resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.trace_sample_ratio))
            )
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otlp_endpoint)))
            self._tracer = self._provider.get_tracer("triptych")
        # Spans of this process are given as (wall clock) nanoseconds, workers report monotonic seconds.
        self._wall_minus_monotonic_ns = time.time_ns() - time.monotonic_ns()

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._provider is not None

    def begin(self, name: str, parent: trace.Span | str | None, kind: trace.SpanKind) -> trace.Span:
        """A span from now on; its owner ends it.

        Args:
            parent: a span of this process, or a traceparent that came with a request; a new trace without one.
        """
        return self._tracer.start_span(name, _context(parent), kind)

    def record(
        self, name: str, parent: str | None, begun: float, ended: float, attributes: Attributes | None = None
    ) -> None:
        """A span that is over already, its moments on this host's monotonic clock. Nothing without a parent."""
        if parent is None or self._provider is None:
            return
        span = self._tracer.start_span(name, _context(parent), start_time=self._wall_ns(begun), attributes=attributes)
        span.end(self._wall_ns(max(begun, ended)))

    def close(self) -> None:
        """Send what is left and end the sending thread."""
        if self._provider is not None:
            self._provider.shutdown()
            self._provider = None

    def _wall_ns(self, monotonic_s: float) -> int:
        return int(monotonic_s * 1e9) + self._wall_minus_monotonic_ns


def traceparent_of(span: trace.Span) -> str | None:
    """What to send along so that the receiver's spans become children of `span`; None when it is not recorded."""
    if not span.get_span_context().is_valid:
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(_TRACEPARENT)


def _context(parent: trace.Span | str | None) -> Context:
    if isinstance(parent, str):
        return _PROPAGATOR.extract({_TRACEPARENT: parent}, Context())
    # An empty context, not the current one: what else runs in this task is not this request's.
    return Context() if parent is None else trace.set_span_in_context(parent, Context())
