"""The other topologies that a configuration can ask for: E/PD and P/D."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import yaml
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, PictureHost
from tests.e2e.leases import stage_status, wait_until_nothing_is_held
from tests.e2e.questions import questions
from tests.e2e.servers import Server, triptych_server
from tests.e2e.test_exact import NUM_TOKENS, ask

pytestmark = pytest.mark.timeout(900)


_NUM_ADMITTED = 64
_NUM_AT_ONCE = 500


def _overload(server: Server, reference: OpenAI, picture_host: PictureHost) -> None:
    """Far more at once than the ingress takes in: each is answered rightly or told when to come again."""
    asked = [
        question.messages(picture_host.url_of)
        for question in questions()
        if len(question.parts) > 1 and not question.by_url
    ][:8]
    expected = [ask(reference, messages, stream=False) for messages in asked]

    async def ask_all() -> list[tuple[int, Any]]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=180, limits=limits) as client:

            async def one(number: int) -> tuple[int, Any]:
                body = {
                    "model": MODEL_NAME,
                    "messages": asked[number % len(asked)],
                    "max_tokens": NUM_TOKENS,
                    "temperature": 0,
                    "return_token_ids": True,
                    "ignore_eos": True,
                }
                answer = await client.post("/v1/chat/completions", json=body)
                if answer.status_code == 200:
                    return 200, answer.json()["choices"][0]["token_ids"]
                return answer.status_code, answer.headers.get("retry-after")

            return await asyncio.gather(*(one(number) for number in range(_NUM_AT_ONCE)))

    outcomes = asyncio.run(ask_all())
    num_served = 0
    for number, (status, detail) in enumerate(outcomes):
        if status == 200:
            num_served += 1
            assert detail == expected[number % len(asked)][1], number
        else:
            assert status in (429, 503), (status, detail)
            assert int(detail) >= 1
    assert _NUM_ADMITTED <= num_served < _NUM_AT_ONCE
    wait_until_nothing_is_held(server)


def _config(settings: dict[str, Any], without: str, folder: Path) -> Path:
    """The session's settings with one replica of each stage and without one of the stages."""
    changed: dict[str, Any] = {key: value for key, value in settings.items() if key != without}
    for stage in ("encoder", "prefill", "decode"):
        if stage in changed:
            changed[stage] = changed[stage] | {"num_replicas": 1}
    changed["ingress"] = {"max_admitted_requests": _NUM_ADMITTED}
    file = folder / "service.yaml"
    file.write_text(yaml.safe_dump(changed))
    return file


def test_decode_prefills_when_there_is_no_prefill_stage(
    service_settings: dict[str, object], reference: OpenAI, picture_host: PictureHost, tmp_path: Path
) -> None:
    with triptych_server(_config(service_settings, "prefill", tmp_path), tmp_path) as server:
        server.wait_until_ready()
        client = server.client()
        for question in questions()[:9]:
            messages = question.messages(picture_host.url_of)
            assert ask(client, messages, stream=question.stream) == ask(reference, messages, stream=False)
        assert sum(replica["num_leases"] for replica in stage_status(server, "encoder")) == 0
        _overload(server, reference, picture_host)


def test_text_only_without_an_encoder_stage(
    service_settings: dict[str, object], reference: OpenAI, tmp_path: Path
) -> None:
    with triptych_server(_config(service_settings, "encoder", tmp_path), tmp_path) as server:
        server.wait_until_ready()
        client = server.client()
        for text in ("Hello", "What is a triptych?", "Ünïcödé 🙂"):
            messages = [{"role": "user", "content": text}]
            assert ask(client, messages, stream=True) == ask(reference, messages, stream=False)
        picture = next(question for question in questions() if len(question.parts) > 1 and not question.by_url)
        body = {"model": MODEL_NAME, "messages": picture.messages(lambda part: part.data_url)}
        answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 400
        assert "image" in answer.json()["error"]["message"]
