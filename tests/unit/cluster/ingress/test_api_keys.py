"""API keys: who may come in, as whom, and how many at a time; and that no key goes on from here."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN
from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.api_keys import ApiKeyMiddleware
from cluster.ingress.observation import RequestObservation
from cluster.ingress.scope import RequestScopeMiddleware, current_request
from cluster.leases import RequestLeases
from cluster.trace import TraceWriter
from configs import ApiKey
from transfer import EmbeddingRef

RED, RED_TOO, BLUE = "red-key-0123456789", "red-key-9876543210", "blue-key-0123456789"
KEYS = (ApiKey("red", RED), ApiKey("red", RED_TOO), ApiKey("blue", BLUE))
CHAT = "/v1/chat/completions"


class _NoEncoders:
    """Nothing is leased here."""

    def release(self, ref: EmbeddingRef) -> None:
        raise AssertionError(ref)

    renew = release


def _no_leases() -> RequestLeases:
    return RequestLeases(_NoEncoders(), 60.0)


class _App:
    """Answers with the tenant that it works for, when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.let.set()
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        tenant = current_request().tenant if scope["type"] == "http" else ""
        await self.let.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": tenant.encode()})


class _Observer:
    """Takes note of nothing."""

    def begin(self, request_id: str, method: str, path: str, traceparent: str | None) -> RequestObservation:
        return RequestObservation(request_id, path, INVALID_SPAN)

    def end(self, *_: Any) -> None:
        """Nothing."""


class _Service:
    """The two middlewares as the ingress puts them around the application."""

    def __init__(self, keys: tuple[ApiKey, ...] = KEYS, max_requests_per_key: int | None = None) -> None:
        self.app = _App()
        inner = ApiKeyMiddleware(self.app, keys, max_requests_per_key)
        self._outer = RequestScopeMiddleware(inner, _no_leases, 60.0, TraceWriter(None), _Observer())  # type: ignore[arg-type]

    async def ask(
        self, authorization: str | None, path: str = CHAT, method: str = "POST", kind: str = "http"
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the answer."""
        headers = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("nothing of a request is read here")

        await self._outer({"type": kind, "method": method, "path": path, "headers": headers}, receive, send)
        start = sent[0]
        if kind != "http":
            return start["code"], {}, b""
        return start["status"], dict(start["headers"]), sent[1]["body"]


@pytest.mark.parametrize(
    ("authorization", "tenant"),
    [(f"Bearer {RED}", b"red"), (f"bearer {RED_TOO}", b"red"), (f"Bearer  {BLUE} ", b"blue")],
)
async def test_a_key_comes_in_as_its_name(authorization: str, tenant: bytes) -> None:
    assert (await _Service().ask(authorization))[::2] == (200, tenant)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", f"Basic {RED}", RED, f"Bearer {RED}x", f"Bearer {RED[:-1]}", "Bearer schlüssel"],
)
async def test_anything_else_is_an_openai_error_of_401(authorization: str | None) -> None:
    service = _Service()
    status, headers, body = await service.ask(authorization)
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert b"x-request-id" in headers
    error = json.loads(body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("AuthenticationError", 401, None)
    assert error["message"]
    assert RED not in body.decode()
    assert service.app.scopes == []


@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/triptych/status", "/docs", "/health/../v1/models", ""])
async def test_all_but_the_health_needs_a_key(path: str) -> None:
    """vLLM's own guard leaves everything outside /v1 open, which tokenises for anybody."""
    assert (await _Service().ask(None, path, "GET"))[0] == 401


async def test_load_balancers_and_browsers_asking_ahead_need_none() -> None:
    assert (await _Service().ask(None, "/health", "GET"))[0] == 200
    assert (await _Service().ask(None, CHAT, "OPTIONS"))[0] == 200


async def test_without_keys_anybody_is_answered_as_nobody() -> None:
    service = _Service(keys=())
    assert (await service.ask(None))[::2] == (200, b"")
    assert (await service.ask("Bearer none"))[::2] == (200, b"")


async def test_a_websocket_without_a_key_is_closed() -> None:
    service = _Service()
    assert (await service.ask(None, kind="websocket"))[0] == 1008
    assert service.app.scopes == []


async def test_each_key_has_its_own_bound() -> None:
    service = _Service(max_requests_per_key=2)
    service.app.let.clear()
    inside = [asyncio.ensure_future(service.ask(f"Bearer {RED}")) for _ in range(2)]
    await asyncio.sleep(0)
    status, headers, body = await service.ask(f"Bearer {RED}")
    assert status == 429
    assert int(headers[b"retry-after"]) >= 1
    assert json.loads(body)["error"]["type"] == "RateLimitError"
    others = [asyncio.ensure_future(service.ask(f"Bearer {key}")) for key in (RED_TOO, BLUE)]
    await asyncio.sleep(0)
    service.app.let.set()
    assert [status for status, _, _ in await asyncio.gather(*inside, *others)] == [200] * 4
    assert (await service.ask(f"Bearer {RED}"))[0] == 200
    # Reading what models there are is no work.
    assert (await service.ask(f"Bearer {RED}", "/v1/models", "GET"))[0] == 200


async def test_a_key_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    service = _Service()
    with caplog.at_level(logging.DEBUG):
        await service.ask(f"Bearer {RED}")
        await service.ask(f"Bearer {RED}x")
    (scope,) = service.app.scopes
    assert RED not in repr(scope)
    assert RED not in caplog.text
    assert RED not in repr(vars(service.app))


async def test_the_tenant_ends_with_the_request() -> None:
    """Requests over one connection come one after another in the same task."""
    service = _Service()
    assert (await service.ask(f"Bearer {RED}"))[2] == b"red"
    assert (await service.ask(None, "/health", "GET"))[2] == b""
    with pytest.raises(AssertionError, match="outside an HTTP request"):
        current_request()
