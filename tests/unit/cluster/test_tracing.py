"""Tracing that is off costs nothing and sends nothing along; a context that came in is the parent."""

from __future__ import annotations

from opentelemetry.trace import SpanKind

from cluster.tracing import Tracing, traceparent_of
from configs import ObservabilityConfig

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_without_an_endpoint_nothing_is_recorded_or_sent_along() -> None:
    tracing = Tracing(ObservabilityConfig(), "decode", "r")
    span = tracing.begin("decode", None, SpanKind.CLIENT)
    assert not span.is_recording()
    assert traceparent_of(span) is None
    tracing.record("decode.queue", _PARENT, 1.0, 2.0)
    tracing.close()
    tracing.close()


def test_a_child_belongs_to_the_trace_of_its_parent() -> None:
    """The endpoint is never reached here: what matters is the context that travels on."""
    tracing = Tracing(ObservabilityConfig(otlp_endpoint="http://127.0.0.1:9/v1/traces"), "decode", "r")
    try:
        child = tracing.begin("decode", _PARENT, SpanKind.SERVER)
        sent = traceparent_of(child)
        assert sent is not None
        assert sent.split("-")[1] == _PARENT.split("-")[1]
        assert sent.split("-")[2] != _PARENT.split("-")[2]
        unrelated = tracing.begin("decode", None, SpanKind.SERVER)
        assert unrelated.get_span_context().trace_id != child.get_span_context().trace_id
    finally:
        tracing.close()


def test_what_the_caller_leaves_out_the_ratio_leaves_out() -> None:
    settings = ObservabilityConfig(otlp_endpoint="http://127.0.0.1:9/v1/traces", trace_sample_ratio=0)
    tracing = Tracing(settings, "ingress", "r")
    try:
        assert not tracing.begin("request", None, SpanKind.SERVER).is_recording()
        span = tracing.begin("request", _PARENT, SpanKind.SERVER)
        assert span.is_recording()
        # Spans that are not ended are not exported, so closing has nothing to wait for.
    finally:
        tracing.close()
