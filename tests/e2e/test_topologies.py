"""The other topologies that a configuration can ask for: E/PD and P/D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from openai import OpenAI

from tests.e2e.conftest import MODEL_NAME, PictureHost
from tests.e2e.leases import stage_status
from tests.e2e.questions import questions
from tests.e2e.servers import triptych_server
from tests.e2e.test_exact import ask

pytestmark = pytest.mark.timeout(900)


def _config(settings: dict[str, Any], without: str, folder: Path) -> Path:
    """The session's settings with one replica of each stage and without one of the stages."""
    changed: dict[str, Any] = {key: value for key, value in settings.items() if key != without}
    for stage in ("encoder", "prefill", "decode"):
        if stage in changed:
            changed[stage] = changed[stage] | {"num_replicas": 1}
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
