"""vLLM's application over a scripted stage: what a client gets when its request fails, and what is counted then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from openai.types.responses import ResponseErrorEvent
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message
from vllm.outputs import CompletionOutput, RequestOutput

from cluster.ingress.app import build_openai_app
from cluster.ingress.observation import RequestObserver
from cluster.metrics import registry
from cluster.metrics.instruments import Instruments
from cluster.metrics.registry import Metric
from cluster.metrics.scrape import MetricsExport
from cluster.pipeline import Pipeline
from cluster.tracing import Tracing
from configs import TriptychConfig
from llm_workers.messages import DecodeRequest, KVParams
from transfer import BadMedia, DeadlineExceeded, EmbeddingRef, QueueFull, TriptychError, WorkerLost

_CHECKPOINT = Path(__file__).resolve().parents[4] / "examples" / "demo_model" / "checkpoint"
_QUESTION = "Hello"
_CHAT = {"model": "demo", "messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 8, "stream": True}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": "demo", "input": _QUESTION, "stream": True},
    "/v1/messages": _CHAT,
    "/v1/chat/completions": _CHAT,
}
FAILURES = [
    (WorkerLost("gone"), 503, "gone [worker_lost]", "failed"),
    (QueueFull("no room"), 503, "no room [queue_full]", "rejected"),
    (DeadlineExceeded("too late"), 504, "too late [deadline_exceeded]", "failed"),
    (BadMedia("not a picture"), 400, "not a picture", "rejected"),
    (TriptychError("broken"), 500, "broken [internal]", "failed"),
]


class _Decode:
    """Gives the texts of its script, raises its errors, and waits for ever at None."""

    def __init__(self) -> None:
        self.script: list[str | Exception | None] = []
        self.waits = asyncio.Event()

    async def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if step is None:
                self.waits.set()
                await asyncio.Event().wait()
            completion = CompletionOutput(0, step or "", [5], None, None)
            yield RequestOutput(request.request_id, None, [1], None, [completion], False)

    async def release_kv(self, request_id: str, kv_params: KVParams) -> None:
        raise AssertionError("there is no prefill stage")


class _Instruments(Instruments):
    """Remembers the outcomes of requests."""

    def __init__(self) -> None:
        super().__init__("ingress", "only")
        self.outcomes: list[str] = []

    def count(self, metric: Metric, amount: float = 1, labels: Mapping[str, str] = MappingProxyType({})) -> None:
        if metric is registry.REQUESTS:
            self.outcomes.append(labels["outcome"])


class _NoLeases:
    """Nothing is leased here."""

    def release(self, ref: EmbeddingRef) -> None:
        raise AssertionError(ref)

    renew = release


class _Service:
    """The ingress over one scripted stage."""

    def __init__(self, config: TriptychConfig) -> None:
        self.decode = _Decode()
        self.instruments = _Instruments()
        observer = RequestObserver(self.instruments, Tracing(config.observability, "ingress", "only"))
        pipeline = Pipeline(None, None, self.decode, attempts=1, busy_wait_s=0.01)
        self.app: ASGIApp = build_openai_app(
            config, pipeline, _NoLeases(), self._status, lambda: MetricsExport([], 0.0), observer
        )

    async def _status(self) -> dict[str, list[Any]]:
        return {"decode": [1]}

    def script(self, *steps: str | Exception | None) -> None:
        """What the stage does with the next request."""
        self.decode.script = list(steps)
        self.decode.waits = asyncio.Event()
        self.instruments.outcomes.clear()


@pytest.fixture(scope="module")
def service() -> Iterator[_Service]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_MEDIA_CONNECTOR", "triptych")  # The application sets it; here it is taken back.
        yield _Service(
            TriptychConfig.model_validate(
                {
                    "model": str(_CHECKPOINT),
                    "served_model_name": "demo",
                    "device": "cpu",
                    "dtype": "float32",
                    "decode": {"kv_cache_bytes": "64 MiB", "engine_args": {"max_model_len": 512}},
                }
            )
        )


@pytest.fixture(scope="module")
def client(service: _Service) -> Iterator[TestClient]:
    with TestClient(service.app, raise_server_exceptions=False) as client:
        yield client


def _events(stream: str) -> list[dict[str, Any]]:
    """The data of a stream's events, whose names are their types."""
    events = []
    for event in stream.strip().split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("error", "status", "message", "outcome"), FAILURES)
def test_a_stream_that_fails_before_its_content_is_answered_as_a_request_that_is_not_streamed(
    service: _Service, client: TestClient, path: str, error: TriptychError, status: int, message: str, outcome: str
) -> None:
    answers = []
    for stream in (True, False):
        service.script(error)
        answers.append(client.post(path, json={**BODIES[path], "stream": stream}))
        assert service.instruments.outcomes == [outcome]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
        assert answer.headers["content-type"] == "application/json"
        assert ("retry-after" in answer.headers) == (status == 503)
    assert answers[0].json() == answers[1].json()


def test_responses_that_fail_later_end_with_an_error_event(service: _Service, client: TestClient) -> None:
    """vLLM cuts the connection, which looks like a fault of the network."""
    service.script("Hi", WorkerLost("gone"))
    answer = client.post("/v1/responses", json=BODIES["/v1/responses"])
    events = _events(answer.text)
    assert answer.status_code == 200
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [events[0]["type"], events[-2]["type"]] == ["response.created", "response.output_text.delta"]
    error = ResponseErrorEvent.model_validate(events[-1])
    assert (error.code, error.message, error.param) == ("503", "gone [worker_lost]", None)
    assert service.instruments.outcomes == ["failed"]


def test_messages_that_fail_later_end_with_an_event_that_says_why(service: _Service, client: TestClient) -> None:
    """vLLM's converter tells how it failed to read the error."""
    service.script("Hi", WorkerLost("gone"))
    answer = client.post("/v1/messages", json=BODIES["/v1/messages"])
    events = _events(answer.text)
    assert answer.status_code == 200
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "error",
    ]
    assert events[-1]["error"] == {"type": "Service Unavailable", "message": "gone [worker_lost]"}
    assert service.instruments.outcomes == ["failed"]


def test_the_start_of_a_message_is_no_content(service: _Service, client: TestClient) -> None:
    """A first token may be half a letter, which gives no text yet."""
    service.script("", WorkerLost("gone"))
    answer = client.post("/v1/messages", json=BODIES["/v1/messages"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "gone [worker_lost]")


def test_chats_that_fail_later_end_with_the_error(service: _Service, client: TestClient) -> None:
    service.script("Hi", WorkerLost("gone"))
    answer = client.post("/v1/chat/completions", json=_CHAT)
    error, done = answer.text.strip().split("\n\n")[-2:]
    assert answer.status_code == 200
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "gone [worker_lost]"
    assert done == "data: [DONE]"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
def test_what_the_engine_would_refuse_has_its_status(service: _Service, client: TestClient, path: str) -> None:
    """vLLM looks at some parameters when the stream has begun."""
    service.script("Hi")
    body = {**BODIES[path], "temperature": 0, "structured_outputs": {"regex": "("}}
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)


def test_responses_tell_of_an_error_that_no_stage_typed(service: _Service, client: TestClient) -> None:
    service.script("Hi", LookupError("no such block"))
    event = _events(client.post("/v1/responses", json=BODIES["/v1/responses"]).text)[-1]
    assert (event["type"], event["code"]) == ("error", "500")
    assert event["message"] == "a request failed in the ingress: LookupError no such block [internal]"
    assert service.instruments.outcomes == ["failed"]


@pytest.mark.parametrize("stream", [False, True], ids=["not streamed", "streamed"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_goes_is_no_finished_request(
    service: _Service, client: TestClient, path: str, stream: bool
) -> None:
    """vLLM answers 200 to nobody then, at once."""
    service.script("Hi", None)
    body = json.dumps({**BODIES[path], "stream": stream}).encode()
    read = False

    async def receive() -> Message:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body}
        await service.decode.waits.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Nobody is there."""

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await service.app(scope, receive, send)
    assert service.instruments.outcomes == ["cancelled"]
