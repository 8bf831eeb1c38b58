"""Requests over which vLLM's checks stumble are answered 400 with the field; what fails here is a typed 500."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from openai.types.responses import ResponseOutputMessage
from pydantic import BaseModel, model_validator
from starlette.testclient import TestClient
from vllm.entrypoints.openai.responses.utils import construct_input_messages

from cluster.ingress.unreadable import answer_unreadable


class _Body(BaseModel):
    structured: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def check_structured_outputs_count(cls, data: dict[str, Any]) -> dict[str, Any]:
        """As vLLM's checks do: takes the value for what its type says, before anybody has looked."""
        data.get("structured_outputs", {}).get("json")
        return data


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.post("/fails")
    async def fails(body: _Body) -> None:
        raise KeyError("gone")

    @app.post("/breaks")
    async def breaks(body: _Body) -> None:
        raise OSError("disk")

    @app.post("/items")
    async def items() -> None:
        said = ResponseOutputMessage(id="m", content=[], role="assistant", status="completed", type="message")
        construct_input_messages(request_instructions=None, request_input=[said])

    answer_unreadable(app)
    return TestClient(app, raise_server_exceptions=False)


def test_a_check_that_stumbles_is_the_clients_error(client: TestClient) -> None:
    answer = client.post("/fails", json={"structured_outputs": 1.5})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, 400, "structured_outputs")
    assert "has no attribute 'get'" in error["message"]


def test_an_item_of_a_responses_request_that_says_nothing_is_the_clients_error(client: TestClient) -> None:
    answer = client.post("/items")
    assert answer.status_code == 400
    assert "list index out of range" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/fails", "/breaks"])
def test_an_error_of_the_endpoint_is_typed(client: TestClient, path: str) -> None:
    """It is no fault of the request, so that it must not look like one; its code tells it from others."""
    answer = client.post(path, json={"structured_outputs": {}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (500, 500)
    assert error["message"].endswith("[internal]")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/fails", 405), ("POST", "/nowhere", 404)])
def test_what_is_not_there_has_the_same_form(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
