"""The other topologies that a configuration can ask for: E/PD and P/D, the latter with short queues."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import yaml
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, PictureHost
from tests.e2e.leases import stage_status
from tests.e2e.load import KEEP_CONNECTIONS
from tests.e2e.questions import questions
from tests.e2e.servers import Server, triptych_server
from tests.e2e.test_exact import ask

_MAX_QUEUED_TOKENS = 5000

pytestmark = pytest.mark.timeout(900)


def _config(settings: dict[str, Any], without: str, folder: Path, **engine: int) -> Path:
    """The session's settings with one replica of each stage and without one of the stages."""
    changed: dict[str, Any] = {key: value for key, value in settings.items() if key != without}
    for stage in ("encoder", "prefill", "decode"):
        if stage in changed:
            changed[stage] = changed[stage] | {"num_replicas": 1} | (engine if stage != "encoder" else {})
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


@pytest.fixture(scope="module")
def text_service(service_settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """P/D that queues the tokens of a few prompts."""
    folder = tmp_path_factory.mktemp("text")
    config = _config(service_settings, "encoder", folder, max_queued_tokens=_MAX_QUEUED_TOKENS)
    with triptych_server(config, folder) as server:
        server.wait_until_ready()
        yield server


def test_text_only_without_an_encoder_stage(text_service: Server, reference: OpenAI) -> None:
    client = text_service.client()
    for text in ("Hello", "What is a triptych?", "Ünïcödé 🙂"):
        messages = [{"role": "user", "content": text}]
        assert ask(client, messages, stream=True) == ask(reference, messages, stream=False)
    picture = next(question for question in questions() if len(question.parts) > 1 and not question.by_url)
    body = {"model": MODEL_NAME, "messages": picture.messages(lambda part: part.data_url)}
    answer = requests.post(f"{text_service.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]["message"]


def test_more_prompts_than_prefill_queues_are_answered_rightly_or_told_when_to_come_again(
    text_service: Server, reference: OpenAI
) -> None:
    """Within the bound they wait, beyond it they are told so before anything is computed for them."""
    prompts = [f"{number}: " + " ".join(str(number * step) for step in range(400)) for number in range(300)]
    answers = asyncio.run(_complete_at_once(text_service, prompts))
    answered = {prompt: answer.json() for prompt, answer in zip(prompts, answers, strict=True) if answer.is_success}
    for answer in answers:
        if not answer.is_success:
            assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
            assert "queue_full" in answer.json()["error"]["message"]
            assert int(answer.headers["Retry-After"]) >= 1
    assert 5 <= len(answered) < len(prompts)
    for prompt in list(answered)[:5]:
        expected = reference.completions.create(model=MODEL_NAME, prompt=prompt, max_tokens=4, temperature=0)
        assert answered[prompt]["choices"][0]["text"] == expected.choices[0].text
    num_answered_tokens = sum(answer["usage"]["prompt_tokens"] for answer in answered.values())
    for replica in stage_status(text_service, "prefill"):
        assert replica["num_prompt_tokens"] < 1.5 * num_answered_tokens
    again = asyncio.run(_complete_at_once(text_service, prompts[:2]))
    assert [answer.status_code for answer in again] == [httpx.codes.OK] * 2


async def _complete_at_once(service: Server, prompts: list[str]) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=service.url, timeout=120, limits=KEEP_CONNECTIONS) as client:
        bodies = [
            {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            for prompt in prompts
        ]
        return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
