"""Turns requests away before any work is done for them when the ingress holds as much as it may.

What a request costs is known before it is read: the bytes of its body, which are the memory it takes here and, pictures
being most of it, a measure of the encoders' work. Within the bound requests wait for the stages; beyond it the client
is told at once when to come again, which is better than a late answer for everybody.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.ingress.refusal import refuse

_FULL = "the service is full: come again after the seconds that Retry-After says"
# A request that does not say its size is charged as one large picture.
_UNKNOWN_BYTES = 2**20
_SMOOTHING = 0.1
_MAX_RETRY_AFTER_S = 60


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request inside: what it was charged and when it came."""

    num_bytes: int
    begun: float


class Admission:
    """The account of one ingress replica: every `enter` that admits is followed by one `leave`."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._num_requests = 0
        self._num_bytes = 0
        self._mean_duration_s = 1.0

    def enter(self, num_bytes: int) -> Admitted | None:
        """Take a request in, or None when there is no room. One that is alone has room whatever its size."""
        full = self._num_requests >= self._max_requests or self._num_bytes + num_bytes > self._max_bytes
        if self._num_requests and full:
            return None
        self._num_requests += 1
        self._num_bytes += num_bytes
        return Admitted(num_bytes, time.monotonic())

    def leave(self, admitted: Admitted) -> None:
        """A request has ended, however."""
        self._num_requests -= 1
        self._num_bytes -= admitted.num_bytes
        duration_s = time.monotonic() - admitted.begun
        self._mean_duration_s += _SMOOTHING * (duration_s - self._mean_duration_s)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds after which about everything that is inside now will have ended."""
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._mean_duration_s)))


class AdmissionMiddleware:
    """ASGI middleware: POST requests enter or are answered 429; every 429 and 503 says when to come again."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def send_with_advice(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (429, 503):
                message = {**message, "headers": [*message.get("headers", []), self._advice()]}
            await send(message)

        admitted = self._admission.enter(_size_of(scope))
        if admitted is None:
            await refuse(send_with_advice, 429, "RateLimitError", _FULL)
            return
        try:
            await self._app(scope, receive, send_with_advice)
        finally:
            self._admission.leave(admitted)

    def _advice(self) -> tuple[bytes, bytes]:
        return b"retry-after", str(self._admission.retry_after_s).encode()


def _size_of(scope: Scope) -> int:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    given = next((value for name, value in headers if name.lower() == b"content-length"), b"")
    return int(given) if given.isdigit() else _UNKNOWN_BYTES
