"""What `triptych bench` measures: a server that runs already, or one started for it from a deployment file."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from cluster.cli.bench.questions import Question
from configs.environment import read_environment
from configs.ports import free_port

_TIMEOUT_S = 30.0
_FIRST_ANSWER_TIMEOUT_S = 300.0
_REFUSALS = {httpx.codes.BAD_REQUEST, httpx.codes.UNSUPPORTED_MEDIA_TYPE, httpx.codes.UNPROCESSABLE_ENTITY}
_START_TIMEOUT_S = 1800.0
_STOP_TIMEOUT_S = 120.0
_POLL_S = 0.5


class TargetError(Exception):
    """The server cannot be asked; the message says why."""


@dataclass(frozen=True)
class Target:
    """A server that answers. `base_url` is without `/v1`."""

    base_url: str
    model: str
    source: str

    def describe(self) -> dict[str, str]:
        """For the reports."""
        return {"target": self.source, "model": self.model}


@contextlib.contextmanager
def open_target(url_or_config: str, model: str | None) -> Iterator[Target]:
    """The server, for as long as it is needed.

    Raises:
        TargetError: it does not answer, does not start, or names no model.
    """
    if url_or_config.startswith(("http://", "https://")):
        base_url = url_or_config.rstrip("/").removesuffix("/v1")
        yield Target(base_url, model or _served_model(base_url), base_url)
        return
    with _served(Path(url_or_config)) as base_url:
        yield Target(base_url, model or _served_model(base_url), url_or_config)


@contextlib.contextmanager
def _served(config: Path) -> Iterator[str]:
    """`triptych serve` of this file on a free port of this machine."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "cluster.cli", "serve", str(config), "--port", str(port)]
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            base_url = f"http://127.0.0.1:{port}"
            if not _answers(process, base_url):
                log.seek(0)
                raise TargetError(f"{config} could not be served:\n{log.read().decode(errors='replace')[-4000:]}")
            yield base_url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_TIMEOUT_S)


def _answers(process: subprocess.Popen[bytes], base_url: str) -> bool:
    """Wait until the service is healthy; False when it ended or took too long."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{base_url}/health", timeout=_TIMEOUT_S).is_success:
                return True
        time.sleep(_POLL_S)
    return False


def refusal_of_media(base_url: str, model: str, questions: Sequence[Question]) -> str | None:
    """Why this server takes no media such as these questions have; None when it does, or when none has any.

    A model of pictures and words refuses a sound, which is no failure of the server.
    """
    question = next((question for question in questions if question.num_media), None)
    if question is None:
        return None
    body = {"model": model, "messages": question.messages, "max_tokens": 1, "temperature": 0.0}
    url, headers = f"{base_url}/v1/chat/completions", read_environment().authorization
    try:
        answer = httpx.post(url, json=body, timeout=_FIRST_ANSWER_TIMEOUT_S, headers=headers)
    except httpx.HTTPError:
        return None  # The scenario's own requests will say it.
    return _message(answer) if answer.status_code in _REFUSALS else None


def _message(answer: httpx.Response) -> str:
    """What an OpenAI server says of an error, else what it sent."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(answer.json()["error"]["message"])
    return answer.text[:200] or f"HTTP {answer.status_code}"


def _served_model(base_url: str) -> str:
    try:
        answer = httpx.get(f"{base_url}/v1/models", timeout=_TIMEOUT_S, headers=read_environment().authorization)
        models = answer.raise_for_status().json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise TargetError(f"no OpenAI server answers at {base_url}: {error}") from error
    if not models:
        raise TargetError(f"{base_url} names no model: give --model")
    return str(models[0]["id"])
