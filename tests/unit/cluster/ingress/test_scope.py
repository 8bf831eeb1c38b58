"""A client that goes before its answer is complete has cancelled its request; one that has its answer has not."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN
from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.observation import RequestObservation
from cluster.ingress.scope import RequestScopeMiddleware
from cluster.leases import RequestLeases
from cluster.trace import TraceWriter
from transfer import EmbeddingRef


class _NoEncoders:
    """Nothing is leased here."""

    def release(self, ref: EmbeddingRef) -> None:
        raise AssertionError(ref)

    renew = release


class _Observer:
    """Remembers the outcome of its one request."""

    outcome = ""

    def begin(self, request_id: str, method: str, path: str, traceparent: str | None) -> RequestObservation:
        return RequestObservation(request_id, path, INVALID_SPAN)

    def end(self, observation: RequestObservation, status: int | None, complete: bool, *_: Any) -> None:
        self.outcome = observation.outcome(status, complete)


async def _outcome(steps: list[str], status: int) -> str:
    """What a request counts as whose application sends parts of an answer and reads messages in this order."""
    messages: dict[str, Message] = {
        "start": {"type": "http.response.start", "status": status, "headers": []},
        "part": {"type": "http.response.body", "body": b"part", "more_body": True},
        "end": {"type": "http.response.body", "body": b"end"},
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for step in steps:
            if step == "gone":
                assert (await receive())["type"] == "http.disconnect"
            else:
                await send(messages[step])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Nobody looks."""

    observer = _Observer()
    scope_of = RequestScopeMiddleware(
        app, lambda: RequestLeases(_NoEncoders(), 60.0), 60.0, TraceWriter(None), observer
    )  # type: ignore[arg-type]
    await scope_of({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)
    return observer.outcome


@pytest.mark.parametrize(
    ("steps", "status", "outcome"),
    [
        (["gone", "start", "end"], 200, "cancelled"),  # as vLLM answers, to nobody
        (["gone", "start", "end"], 400, "cancelled"),  # gone while it sent its body: FastAPI cannot read it
        (["start", "part", "gone", "end"], 200, "cancelled"),
        (["start", "part", "end", "gone"], 200, "finished"),  # every connection ends some time
        (["start", "end", "gone"], 503, "rejected"),
    ],
)
async def test_outcomes_of_a_client_that_goes(steps: list[str], status: int, outcome: str) -> None:
    assert await _outcome(steps, status) == outcome
