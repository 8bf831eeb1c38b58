"""Asks for an API key, gives the request the tenant of that key, and bounds what each key has under way.

Everything needs a key but what load balancers ask. The key goes no further than this: neither the application nor a log
gets to see it.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.ingress.admission import Admission
from cluster.ingress.refusal import refuse
from cluster.ingress.scope import act_for
from configs import ApiKey

OPEN_PATHS = frozenset({"/health", "/ping"})
_CHALLENGE = (b"www-authenticate", b"Bearer")
_POLICY_VIOLATION = 1008
_NO_KEY = "this service asks for an API key: send 'Authorization: Bearer KEY'"
_KEY_FULL = "this API key has as many requests under way as it may: come again after the seconds that Retry-After says"
_WRONG_KEY = "the API key is not one of this service's"


@dataclass(frozen=True, slots=True)
class _Client:
    """One key: its digest, whose it is, and what it has under way."""

    digest: bytes
    tenant: str
    admission: Admission


class ApiKeyMiddleware:
    """ASGI middleware; without keys it lets everything through."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey], max_requests_per_key: int | None) -> None:
        """Args: `max_requests_per_key`: requests that one key may have under way in this process; None: any number."""
        bound = max_requests_per_key or sys.maxsize
        self._app = app
        self._clients = [
            _Client(_digest(key.secret.encode()), key.tenant, Admission(bound, sys.maxsize)) for key in keys
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._clients or scope["type"] not in ("http", "websocket") or _is_open(scope):
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = next((value for name, value in headers if name.lower() == b"authorization"), None)
        client = None if given is None else self._client_of(given)
        if client is None:
            await _refuse(scope, send, _NO_KEY if given is None else _WRONG_KEY)
            return
        scope = {**scope, "headers": [(name, value) for name, value in headers if name.lower() != b"authorization"]}
        if scope["type"] == "http":
            act_for(client.tenant)
        if scope["type"] == "http" and scope["method"] == "POST":
            await self._bounded(client.admission, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _client_of(self, authorization: bytes) -> _Client | None:
        """Whose key it is. Compares with all of them, each in constant time, so that time tells nothing of any."""
        scheme, _, token = authorization.partition(b" ")
        digest = _digest(token.strip())
        found = None
        for client in self._clients:
            if hmac.compare_digest(client.digest, digest):
                found = client
        return found if scheme.lower() == b"bearer" else None

    async def _bounded(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        admitted = admission.enter(0)
        if admitted is None:
            advice = (b"retry-after", str(admission.retry_after_s).encode())
            await refuse(send, 429, "RateLimitError", _KEY_FULL, headers=[advice])
            return
        try:
            await self._app(scope, receive, send)
        finally:
            admission.leave(admitted)


def _digest(secret: bytes) -> bytes:
    """Of equal length for all keys, which comparing in constant time needs."""
    return hashlib.sha256(secret).digest()


def _is_open(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["method"] == "OPTIONS" or path in OPEN_PATHS


async def _refuse(scope: Scope, send: Send, message: str) -> None:
    if scope["type"] == "http":
        await refuse(send, 401, "AuthenticationError", message, headers=[_CHALLENGE])
        return
    closing: Message = {"type": "websocket.close", "code": _POLICY_VIOLATION}
    await send(closing)
