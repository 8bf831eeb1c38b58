"""A client that goes away ends its request in every stage, whenever it goes."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
import requests
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME
from tests.e2e.leases import stage_status, wait_until_nothing_is_held
from tests.e2e.media import draw
from tests.e2e.servers import Server


def _body(seed: int, **fields: Any) -> dict[str, Any]:
    picture = {"type": "image_url", "image_url": {"url": draw(seed, 640, 480, "jpeg").data_url}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "Tell a long story."}]}]
    return {
        "model": MODEL_NAME,
        "messages": messages,
        "max_tokens": 3000,
        "ignore_eos": True,
        "temperature": 0,
    } | fields


def _tokens_were_cut(service: Server, started: float) -> None:
    """3,000 tokens take over ten seconds here: nothing held so soon means that the stages were told to stop."""
    wait_until_nothing_is_held(service, timeout_s=8)
    assert time.monotonic() - started < 60
    assert all(replica["num_running"] == 0 for replica in stage_status(service, "decode"))


def test_stream_is_closed_after_some_tokens(service: Server) -> None:
    started = time.monotonic()
    with requests.post(
        f"{service.url}/v1/chat/completions", json=_body(6001, stream=True), stream=True, timeout=60
    ) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        assert sum(replica["num_running"] for replica in stage_status(service, "decode")) == 1
    _tokens_were_cut(service, started)


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.5], ids=["at once", "while it is encoded", "while it is decoded"])
def test_connection_is_cut(service: Server, client: OpenAI, wait_s: float) -> None:
    """A request that is not streamed learns nothing until its end; the connection's end is the only sign."""
    started = time.monotonic()
    seed = 6100 + int(wait_s * 100)
    request = requests.Request("POST", f"{service.url}/v1/chat/completions", json=_body(seed)).prepare()
    head = [f"POST {request.path_url} HTTP/1.1", f"Host: 127.0.0.1:{service.port}"]
    head += [f"{name}: {value}" for name, value in request.headers.items()]
    body = request.body
    assert isinstance(body, bytes)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        time.sleep(wait_s)
    _tokens_were_cut(service, started)
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": "Still there?"}], max_tokens=4
    )
    assert answer.choices[0].finish_reason in ("length", "stop")
