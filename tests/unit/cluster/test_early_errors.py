"""A streamed request that fails before its first token is answered with the error's own status."""

from __future__ import annotations

import json

import pytest
from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.early_errors import EarlyErrorMiddleware

_ERROR = {"error": {"message": "the image is damaged", "type": "BadRequestError", "param": None, "code": 400}}


async def _answer_of(
    bodies: list[bytes],
    content_type: bytes = b"text/event-stream; charset=utf-8",
    raises: Exception | None = None,
) -> list[Message]:
    """What a client gets of an application that sends `bodies`, and instead of an end raises `raises`."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type), (b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if raises is not None:
            raise raises
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await EarlyErrorMiddleware(app)({"type": "http"}, receive, send)
    return sent


async def test_error_before_the_first_event_becomes_the_answer() -> None:
    sent = await _answer_of([b"data: " + json.dumps(_ERROR).encode() + b"\n\n", b"data: [DONE]\n\n"])
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"]) == _ERROR


async def test_the_answer_has_the_headers_of_the_stream_but_those_of_its_body() -> None:
    """Without those of CORS a browser does not show a page the error."""
    sent = await _answer_of([b"data: " + json.dumps(_ERROR).encode() + b"\n\n"])
    assert dict(sent[0]["headers"]) == {
        b"access-control-allow-origin": b"*",
        b"content-type": b"application/json",
        b"content-length": str(len(sent[1]["body"])).encode(),
    }
    assert len(sent[0]["headers"]) == 3


async def test_error_after_the_first_event_stays_in_the_stream() -> None:
    events = [b'data: {"choices": []}\n\n', b"data: " + json.dumps(_ERROR).encode() + b"\n\n"]
    sent = await _answer_of(events)
    assert sent[0]["status"] == 200
    assert [message["body"] for message in sent[1:3]] == events


async def test_other_answers_pass_as_they_are() -> None:
    sent = await _answer_of([json.dumps(_ERROR).encode()], content_type=b"application/json")
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"]) == _ERROR


async def test_an_empty_stream_keeps_its_start() -> None:
    sent = await _answer_of([])
    assert sent[0]["status"] == 200
    assert sent[1]["body"] == b""


@pytest.mark.parametrize("bodies", [[], [b'event: response.created\ndata: {"sequence_number": 0}\n\n']])
async def test_a_stream_that_breaks_off_before_its_content_becomes_an_answer(bodies: list[bytes]) -> None:
    sent = await _answer_of(bodies, raises=RuntimeError("no such block"))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (500, 500)


async def test_a_stream_that_breaks_off_ends_with_the_error_in_its_form() -> None:
    sent = await _answer_of([b'data: {"choices": []}\n\n'], raises=RuntimeError("no such block"))
    assert sent[-1]["body"].startswith(b'data: {"error":')
    assert not sent[-1].get("more_body", False)


async def test_what_is_no_stream_breaks_off_as_it_did() -> None:
    with pytest.raises(RuntimeError):
        await _answer_of([b"{"], b"application/json", RuntimeError("no such block"))


async def test_an_error_event_of_which_nothing_is_known_stays_in_the_stream() -> None:
    event = b'event: error\ndata: {"type": "error", "error": {"type": "internal_error", "message": "?"}}\n\n'
    sent = await _answer_of([event])
    assert (sent[0]["status"], sent[1]["body"]) == (200, event)
