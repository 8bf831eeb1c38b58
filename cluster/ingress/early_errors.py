"""Gives a streamed request that fails the HTTP status of its error, or once there is content an event that says it.

vLLM's application begins a stream with status 200. The errors of chats and completions are events in it; a stream of
Responses it cuts, and in one of Messages it tells what its own converter made of the error. As long as no content was
sent, the error can still be an answer of its own, as it is for a request that is not streamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.anthropic.api_router import translate_error_response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

from cluster.ingress.errors import error_behind
from cluster.ingress.observation import current_observation

_CHAT_ERROR = b'data: {"error":'
_MESSAGES_ERROR = b"event: error\n"
_OF_RESPONSES = b"event: response."
_BEFORE_CONTENT = (b"event: response.created\n", b"event: response.in_progress\n", b"event: message_start\n")
_OF_THE_BODY = (b"content-type", b"content-length")


class EarlyErrorMiddleware:
    """ASGI middleware: holds back the start of an event stream until its first event with content is known."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer.send)
        except RuntimeError as error:  # Starlette's, around one that it could have answered before the stream began.
            if not answer.is_open:
                raise
            await answer.end(error_behind(error))


@dataclass(frozen=True, slots=True)
class _Failure:
    """How a streamed request failed, as an answer and as the event that ends the stream."""

    status: int
    body: bytes
    event: bytes


class _Answer:
    """One answer on its way out. `is_open`: it is an event stream, and more of it may follow."""

    def __init__(self, send: Send) -> None:
        self.is_open = False
        self._send = send
        self._held: list[Message] = []
        self._last_event = b""
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start" and _is_event_stream(message):
            self.is_open = True
            self._held.append(message)
        elif self.is_open:
            await self._send_event(message)
        else:
            await self._send(message)

    async def end(self, error: VLLMError) -> None:
        """Tell of an error that the application raised in the middle of the stream."""
        failure = _raised(error, self._last_event)
        if self._held:
            await self._replace(failure)
        else:
            await self._send({"type": "http.response.body", "body": failure.event})

    async def _send_event(self, message: Message) -> None:
        event: bytes = message.get("body", b"")
        self.is_open = message.get("more_body", False)
        self._last_event = event or self._last_event
        failure = _failure_in(event)
        if self._held and failure is not None:
            await self._replace(failure)
        elif self._held and event.startswith(_BEFORE_CONTENT):
            self._held.append(message)
        else:
            held, self._held = self._held, []
            for earlier in held:
                await self._send(earlier)
            await self._send(message if failure is None else {**message, "body": failure.event})

    async def _replace(self, failure: _Failure) -> None:
        """The error as an answer, under the headers that the application gave its stream, such as those of CORS."""
        self._replaced, self.is_open = True, False
        headers = [(name, value) for name, value in self._held[0]["headers"] if name not in _OF_THE_BODY]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(failure.body)).encode())]
        await self._send({"type": "http.response.start", "status": failure.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": failure.body})


def _is_event_stream(message: Message) -> bool:
    headers: list[tuple[bytes, bytes]] = message.get("headers", [])
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _failure_in(event: bytes) -> _Failure | None:
    """The error that an event of the application tells, if it is one."""
    if event.startswith(_CHAT_ERROR):
        error: dict[str, Any] = json.loads(event.split(b"\n", 1)[0].removeprefix(b"data: "))
        status = error["error"].get("code")
        return _Failure(status, json.dumps(error).encode(), event) if isinstance(status, int) else None
    observation = current_observation()
    if not event.startswith(_MESSAGES_ERROR) or observation is None or observation.told is None:
        return None
    # The event holds the words of the converter, which took the error for a piece of a chat.
    answer = translate_error_response(create_error_response(observation.told))
    body = bytes(answer.body)
    return _Failure(answer.status_code, body, _MESSAGES_ERROR + b"data: " + body + b"\n\n")


def _raised(error: VLLMError, last_event: bytes) -> _Failure:
    """An error that is in no event.

    Args:
        last_event: of the stream, whose form the error's event takes.
    """
    told = create_error_response(error)
    body = told.model_dump_json().encode()
    if not last_event.startswith(_OF_RESPONSES):
        return _Failure(told.error.code, body, b"data: " + body + b"\n\n")
    number = json.loads(last_event.split(b"\ndata: ", 1)[1])["sequence_number"] + 1
    event = {"type": "error", "code": str(told.error.code), "message": told.error.message, "param": told.error.param}
    data = json.dumps({**event, "sequence_number": number}).encode()
    return _Failure(told.error.code, body, b"event: error\ndata: " + data + b"\n\n")
