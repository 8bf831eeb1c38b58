"""One HTTP request's scope: made before the application sees it, closed when its last byte is out.

Rendering and generating happen in different parts of vLLM's application; what belongs to the request passes between
them here, and whatever leases are left at the end are given up here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.deadline import Deadline
from cluster.ingress.observation import RequestObserver
from cluster.ingress.request_id import IdentifiedRequest, refuse_request_id
from cluster.leases import RequestLeases
from cluster.request import AskedTickets, RequestContext
from cluster.request_logs import log_as
from cluster.trace import RequestTrace, TraceWriter

_current: ContextVar[RequestContext | None] = ContextVar("triptych_request", default=None)

NO_TENANT = ""


def current_request() -> RequestContext:
    """The request that this task works for."""
    context = _current.get()
    assert context is not None, "called outside an HTTP request"
    return context


def act_for(tenant: str) -> None:
    """From here on the request that this task works for is this tenant's."""
    _current.set(replace(current_request(), tenant=tenant))


class RequestScopeMiddleware:
    """ASGI middleware that gives each HTTP request its context."""

    def __init__(
        self,
        app: ASGIApp,
        new_leases: Callable[[], RequestLeases],
        deadline_s: float,
        traces: TraceWriter,
        observer: RequestObserver,
    ) -> None:
        self._app = app
        self._new_leases = new_leases
        self._deadline_s = deadline_s
        self._traces = traces
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = IdentifiedRequest.of(scope)
        if request is None:
            await refuse_request_id(send)
            return
        leases = self._new_leases()
        trace = RequestTrace(request.request_id)
        trace.mark("arrived")
        log_as(request.request_id)
        observation = self._observer.begin(request.request_id, scope["method"], scope["path"], request.traceparent)
        status: int | None = None
        complete = False

        async def send_traced(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message = request.answered(message)
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
                if message.get("body"):
                    trace.mark("first_byte")
            await send(message)

        async def receive_watched() -> Message:
            message = await receive()
            # One follows every complete answer, too.
            if message["type"] == "http.disconnect" and not complete:
                observation.disconnected = True
            return message

        asked = AskedTickets()
        deadline = Deadline(self._deadline_s)
        token = _current.set(RequestContext(request.request_id, NO_TENANT, deadline, leases, trace, asked))
        try:
            await self._app(request.scope, receive_watched, send_traced)
        finally:
            _current.reset(token)
            asked.close()
            leases.close()
            trace.mark("ended")
            self._traces.write(trace)
            self._observer.end(observation, status, complete, trace.retries)
