"""A small OTLP collector: takes spans over HTTP and keeps them by trace."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came in; `service` is the process's service.name."""

    service: str
    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int]


class OTLPCollector:
    """An HTTP server on loopback."""

    def __init__(self) -> None:
        self._traces: dict[str, list[ReceivedSpan]] = {}
        self._changed = threading.Condition()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """Takes one export."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where to send."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one export."""
        with self._changed:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    attributes = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                    self._traces.setdefault(span.trace_id.hex(), []).append(
                        ReceivedSpan(
                            service,
                            span.name,
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            attributes,
                        )
                    )
            self._changed.notify_all()

    def wait_for(self, trace_id: str, num_spans: int, timeout_s: float) -> list[ReceivedSpan]:
        """The spans of a trace, once there are as many.

        Raises:
            AssertionError: there are fewer after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._traces.get(trace_id, [])) < num_spans:
                names = [span.name for span in self._traces.get(trace_id, [])]
                assert self._changed.wait(deadline - time.monotonic()), f"only {names} came"
            return list(self._traces[trace_id])

    def trace_ids(self) -> set[str]:
        """The traces that came."""
        with self._changed:
            return set(self._traces)

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
