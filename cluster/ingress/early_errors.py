"""Gives a streamed request that fails before its first token the HTTP status of its error.

vLLM's application begins a stream with status 200 and puts an error into it. As long as nothing was sent, the error can
still be an answer of its own, as it is for a request that is not streamed.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ERROR_EVENT = b'data: {"error":'
_OF_THE_BODY = (b"content-type", b"content-length")


class EarlyErrorMiddleware:
    """ASGI middleware: holds back the start of an event stream until its first event is known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        await self._app(scope, receive, answer.send)


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start" and _is_event_stream(message):
            self._held = message
            return
        if self._held is not None:
            held, self._held = self._held, None
            error = _first_error(message)
            if error is not None:
                self._replaced = True
                await self._send_error(error, held)
                return
            await self._send(held)
        await self._send(message)

    async def _send_error(self, error: dict[str, Any], held: Message) -> None:
        """The error as an answer, under the headers that the application gave its stream, such as those of CORS."""
        body = json.dumps(error).encode()
        headers = [(name, value) for name, value in held["headers"] if name not in _OF_THE_BODY]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": error["error"]["code"], "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _is_event_stream(message: Message) -> bool:
    headers: list[tuple[bytes, bytes]] = message.get("headers", [])
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _first_error(message: Message) -> dict[str, Any] | None:
    """The error object of a stream's first event, if it is one."""
    body: bytes = message.get("body", b"")
    if not body.startswith(_ERROR_EVENT):
        return None
    error: dict[str, Any] = json.loads(body.split(b"\n", 1)[0].removeprefix(b"data: "))
    return error if isinstance(error["error"].get("code"), int) else None
