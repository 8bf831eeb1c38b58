"""Admission: bounds by requests and by bytes, one leave for each enter, and advice on every refusal."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.admission import Admission, AdmissionMiddleware


def _scope(num_bytes: int | None = 100, method: str = "POST") -> Scope:
    headers = [] if num_bytes is None else [(b"content-length", str(num_bytes).encode())]
    return {"type": "http", "method": method, "path": "/v1/chat/completions", "headers": headers}


class _App:
    """Answers when it is let, with the status that it is given."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.let = asyncio.Event()
        self.num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_inside += 1
        await self.let.wait()
        self.num_inside -= 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _ask(middleware: AdmissionMiddleware, scope: Scope) -> Message:
    """The start of the answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refused request is not read")

    await middleware(scope, receive, send)
    return sent[0]


async def test_what_has_no_room_is_refused_at_once_and_the_rest_is_served() -> None:
    app = _App()
    middleware = AdmissionMiddleware(app, Admission(max_requests=3, max_bytes=10_000))
    inside = [asyncio.ensure_future(_ask(middleware, _scope())) for _ in range(3)]
    await asyncio.sleep(0)
    refused = await _ask(middleware, _scope())
    assert refused["status"] == 429
    assert int(dict(refused["headers"])[b"retry-after"]) >= 1
    assert app.num_inside == 3
    app.let.set()
    assert [answer["status"] for answer in await asyncio.gather(*inside)] == [200] * 3
    assert (await _ask(middleware, _scope()))["status"] == 200


async def test_bytes_are_bounded_too_but_one_alone_always_enters() -> None:
    app = _App()
    middleware = AdmissionMiddleware(app, Admission(max_requests=100, max_bytes=1000))
    large = asyncio.ensure_future(_ask(middleware, _scope(5000)))
    await asyncio.sleep(0)
    assert (await _ask(middleware, _scope(1)))["status"] == 429
    assert (await _ask(middleware, _scope(None)))["status"] == 429
    app.let.set()
    assert (await large)["status"] == 200


async def test_reading_is_never_refused() -> None:
    app = _App()
    app.let.set()
    admission = Admission(max_requests=1, max_bytes=1000)
    assert admission.enter(1) is not None
    assert (await _ask(AdmissionMiddleware(app, admission), _scope(method="GET")))["status"] == 200


async def test_a_stage_that_is_busy_says_when_to_come_again() -> None:
    app = _App(503)
    app.let.set()
    answer = await _ask(AdmissionMiddleware(app, Admission(4, 1000)), _scope())
    assert b"retry-after" in dict(answer["headers"])


async def test_a_request_that_breaks_leaves_too() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    admission = Admission(max_requests=1, max_bytes=1000)
    for _ in range(3):
        try:
            await _ask(AdmissionMiddleware(broken, admission), _scope())
        except RuntimeError as error:
            assert str(error) == "broken"
    app = _App()
    app.let.set()
    assert (await _ask(AdmissionMiddleware(app, admission), _scope()))["status"] == 200
