"""One HTTP request's scope: made before the application sees it, closed when its last byte is out.

Rendering and generating happen in different parts of vLLM's application; what belongs to the request passes between
them here, and whatever leases are left at the end are given up here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.deadline import Deadline
from cluster.leases import RequestLeases
from cluster.pipeline import AskedTickets, RequestContext
from cluster.trace import RequestTrace, TraceWriter
from transfer import EmbeddingRef

_current: ContextVar[RequestContext | None] = ContextVar("triptych_request", default=None)

DEFAULT_TENANT = "default"


def current_request() -> RequestContext:
    """The request that this task works for."""
    context = _current.get()
    assert context is not None, "called outside an HTTP request"
    return context


class RequestScopeMiddleware:
    """ASGI middleware that gives each HTTP request its context."""

    def __init__(
        self, app: ASGIApp, release: Callable[[EmbeddingRef], None], deadline_s: float, traces: TraceWriter
    ) -> None:
        self._app = app
        self._release = release
        self._deadline_s = deadline_s
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        leases = RequestLeases(self._release)
        trace = RequestTrace(request_id)
        trace.mark("arrived")

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.body" and message.get("body"):
                trace.mark("first_byte")
            await send(message)

        asked = AskedTickets()
        deadline = Deadline(self._deadline_s)
        token = _current.set(RequestContext(request_id, DEFAULT_TENANT, deadline, leases, trace, asked))
        try:
            await self._app(scope, receive, send_traced)
        finally:
            _current.reset(token)
            asked.close()
            leases.close()
            trace.mark("ended")
            self._traces.write(trace)
