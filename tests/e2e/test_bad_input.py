"""What users get wrong: each gets an OpenAI error object with the right status and says what was wrong."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest
import requests
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, PictureHost
from tests.e2e.leases import wait_until_nothing_is_held
from tests.e2e.media import Picture, draw
from tests.e2e.servers import Server

# Bound and never listening: connections to it are refused, and nobody else can come to listen there.
_DEAF = socket.socket()
_DEAF.bind(("127.0.0.1", 0))

_GOOD = draw(2001, 120, 90, "jpeg")


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _body(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return {"model": MODEL_NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 4} | fields


def _data(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _truncated(picture: Picture) -> bytes:
    return picture.data[: len(picture.data) * 2 // 3]


_CASES: dict[str, tuple[dict[str, Any], int, str]] = {
    "not an image": (_body(_image(_data(b"hello, this is text" * 20))), 400, "image"),
    "truncated": (_body(_image(_data(_truncated(draw(2002, 300, 200))))), 400, "image"),
    "truncated jpeg": (_body(_image(_data(_truncated(draw(2003, 300, 200, "jpeg"))))), 400, "image"),
    "corrupt header": (_body(_image(_data(b"\x89PNG\r\n\x1a\n" + b"\0" * 64))), 400, "image"),
    "bad base64": (_body(_image("data:image/png;base64,@@@not-base64@@@")), 400, "data: URL"),
    "no comma": (_body(_image("data:image/png;base64")), 400, "data: URL"),
    "empty": (_body(_image("data:image/png;base64,")), 400, "empty"),
    "scheme": (_body(_image("ftp://127.0.0.1/a.png")), 400, "http"),
    "file scheme": (_body(_image("file:///etc/passwd")), 400, "http"),
    "private address": (_body(_image("http://localhost:1/a.png")), 400, "not public"),
    "unreachable": (_body(_image(f"http://127.0.0.1:{_DEAF.getsockname()[1]}/a.png")), 400, "cannot fetch"),
    "unknown host": (_body(_image("http://no-such-host.invalid/a.png")), 400, "not known"),
    "too many": (_body(*[_image(_GOOD.data_url)] * 5), 400, "image"),
    "too many bytes": (_body(_image(_data(_GOOD.data + b"\0" * (8 * 2**20)))), 400, "bytes"),
    "too many pixels": (_body(_image(draw(2004, 2100, 2000, "jpeg").data_url)), 400, "pixels"),
    "second is bad": (_body(_image(_GOOD.data_url), _image(_data(b"nonsense" * 9))), 400, "image 2 of 2"),
    "too long": (
        {"model": MODEL_NAME, "messages": [{"role": "user", "content": "word " * 5000}], "max_tokens": 4},
        400,
        "context length",
    ),
    "too long with pictures": (
        _body(_image(_GOOD.data_url), {"type": "text", "text": "word " * 5000}),
        400,
        "context length",
    ),
    "unknown model": (_body(_image(_GOOD.data_url), model="no-such-model"), 404, "no-such-model"),
    "placeholder in text": (
        _body(_image(_GOOD.data_url), {"type": "text", "text": "<|image_pad|>"}),
        400,
        "placeholder",
    ),
    "bad temperature": (_body(_image(_GOOD.data_url), temperature=-3), 400, "temperature"),
    "bad part": (_body({"type": "hologram", "hologram": {}}), 400, "hologram"),
    "unknown processor option": (_body(_image(_GOOD.data_url), mm_processor_kwargs={"sharpen": 3}), 400, "sharpen"),
    "unknown field": (_body(_image(_GOOD.data_url), max_tokns=4), 400, "max_tokns"),
    "where to fetch from": (_body(kv_transfer_params={"remote_host": "127.0.0.1"}), 400, "kv_transfer_params"),
    "the same, hidden": (_body(vllm_xargs={"ec_transfer_params": "x"}), 400, "ec_transfer_params"),
    "too many completions": (_body(n=129), 400, "n must be at most 128"),
    "no messages": ({"model": MODEL_NAME}, 400, "messages"),
}  # fmt: skip


@pytest.mark.parametrize("case", _CASES)
def test_bad_input_is_told(service: Server, case: str) -> None:
    body, status, words = _CASES[case]
    answer = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status), error
    assert words in error["message"], error
    assert "Traceback" not in error["message"]


def test_missing_picture_at_a_url(service: Server, picture_host: PictureHost) -> None:
    body = _body(_image(f"{picture_host.base}/missing.png"))
    answer = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "answered 404" in answer.json()["error"]["message"]


def test_not_json(service: Server) -> None:
    answer = requests.post(f"{service.url}/v1/chat/completions", data=b"{", timeout=60)
    assert answer.status_code == 400


@pytest.mark.parametrize("data", [b"nonsense" * 9, _truncated(draw(2002, 300, 200))], ids=["header", "pixels"])
def test_streamed_bad_input_is_an_error_not_a_stream(service: Server, data: bytes) -> None:
    """Whether it is found in the header, before the prompt is known, or only when the pixels are decoded."""
    body = _body(_image(_data(data)), stream=True)
    answer = requests.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]["message"]


def test_the_service_goes_on_and_holds_nothing(service: Server, client: OpenAI, reference: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [_image(_GOOD.data_url), {"type": "text", "text": "Still there?"}]}]
    ours, theirs = (
        c.chat.completions.create(model=MODEL_NAME, messages=messages, max_tokens=6, temperature=0)
        for c in (client, reference)
    )
    assert ours.choices[0].message.content == theirs.choices[0].message.content
    wait_until_nothing_is_held(service)
