"""What the chaos test is made of: questions that are asked without a pause, and a killer of the service's processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import requests

from tests.e2e.conftest import MODEL_NAME
from tests.e2e.leases import stage_status
from tests.e2e.media import draw
from tests.e2e.servers import Server

logger = logging.getLogger(__name__)
STAGES = ("ingress", "encoder", "prefill", "decode")
_TEXTS = ("Count the boxes, please.", "Was ist das?", "描述这张图片。", "Tell me a long story about all of it, slowly.")
_ENGINE = "EngineCore"
_INGRESS_PORTS = range(30000, 31001)  # Serve's own, for the HTTP servers in replicas
_HEALTH_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Ask:
    """One request: how many pictures, how many tokens, streamed or not."""

    number: int
    num_pictures: int
    num_tokens: int
    stream: bool

    def body(self) -> dict[str, Any]:
        """The chat request."""
        content: list[dict[str, Any]] = [{"type": "text", "text": _TEXTS[self.number % len(_TEXTS)]}]
        for index in range(self.num_pictures):
            picture = draw(9000 + 10 * self.number + index, 90 + 17 * (self.number % 9), 70 + 31 * index, "jpeg")
            content.insert(index, {"type": "image_url", "image_url": {"url": picture.data_url}})
        return {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": self.stream,
        }


def asks() -> list[Ask]:
    """A mix of text, one picture and several, short and long, streamed and not."""
    return [
        Ask(number, (0, 1, 0, 3)[number % 4], 100 if number % 5 == 4 else 12, stream=number % 3 == 0)
        for number in range(30)
    ]


@dataclass(frozen=True)
class Answer:
    """Tokens and text of a whole answer."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None


@dataclass(frozen=True)
class Failure:
    """A request without a whole answer; `code`: of its typed error, "cut" for a lost connection, "hung" for none."""

    ask: Ask
    code: str
    detail: str
    begun: float
    ended: float


async def answer_to(client: httpx.AsyncClient, ask: Ask, body: dict[str, Any]) -> Answer:
    """The answer to one request.

    Raises:
        ServiceError: the service answered with an error, by status or in the stream.
        httpx.TransportError: the connection was lost.
        TimeoutError: nothing came for as long as the client waits.
    """
    if not ask.stream:
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code != httpx.codes.OK:
            raise ServiceError(response.text)
        choice = response.json()["choices"][0]
        return Answer(tuple(choice["token_ids"]), choice["message"]["content"] or "", choice["finish_reason"])
    token_ids: list[int] = []
    text, finish_reason = "", None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise ServiceError((await response.aread()).decode(errors="replace"))
        async for event in _events(response):
            chunk = json.loads(event)
            if "error" in chunk:
                raise ServiceError(event)
            for choice in chunk["choices"]:
                token_ids += choice.get("token_ids") or []
                text += choice["delta"].get("content") or ""
                finish_reason = choice["finish_reason"] or finish_reason
    return Answer(tuple(token_ids), text, finish_reason)


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The JSON of a stream's events. `aiter_lines` would also end lines at characters within them (U+0085, U+2028)."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield line.removeprefix(b"data: ").decode()


class ServiceError(Exception):
    """The body of an error answer."""

    @property
    def code(self) -> str:
        """The code that stands at the end of the message; empty for an error that is not typed."""
        try:
            message = json.loads(self.args[0])["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return ""
        return message.rpartition("[")[2].removesuffix("]") if message.endswith("]") else ""


@dataclass
class Load:
    """Requests without a pause: so many clients, each of which asks again when it is answered."""

    expected: dict[Ask, Answer]
    num_clients: int
    timeout_s: float
    num_answered: int = 0
    wrong: list[tuple[Ask, Answer]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    async def run(self, service: Server, seconds: float) -> None:
        """Ask for so long, and wait for the last answers."""
        bodies = {ask: ask.body() for ask in self.expected}
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=service.url, timeout=self.timeout_s) as client:

            async def one_client(seed: int) -> None:
                order = random.Random(seed)
                while time.monotonic() < end:
                    ask = order.choice(list(bodies))
                    await self._one(client, ask, bodies[ask])

            await asyncio.gather(*(one_client(seed) for seed in range(self.num_clients)))

    async def _one(self, client: httpx.AsyncClient, ask: Ask, body: dict[str, Any]) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await answer_to(client, ask, body)
        except ServiceError as error:
            code, detail = error.code, str(error)
        except httpx.TransportError as error:
            code, detail = "cut", repr(error)
        except TimeoutError:
            code, detail = "hung", ""
        else:
            self.num_answered += 1
            if answer != self.expected[ask]:
                logger.info("wrong: %s %s instead of %s", ask, answer, self.expected[ask])
                self.wrong.append((ask, answer))
            return
        self.failures.append(Failure(ask, code, detail, begun, time.monotonic()))
        logger.info("failure %s after %.1f s: %s %s", code, time.monotonic() - begun, ask, detail)


class Killer:
    """Ends a random process of a random stage with SIGKILL, where another replica of the stage is left to serve."""

    def __init__(self, service: Server, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)
        self.kills: list[tuple[str, float]] = []

    def kill_one(self) -> None:
        """One kill; none when no stage has two replicas at the moment."""
        candidates = {stage: replicas for stage in STAGES if len(replicas := live_replicas(self._service, stage)) > 1}
        if not candidates:
            return
        # Stages that were hit less often first: two minutes are short for chance.
        hits = Counter(stage.partition(":")[0] for stage, _ in self.kills)
        fewest = min(hits[stage] for stage in candidates)
        stage = self._random.choice([stage for stage in candidates if hits[stage] == fewest])
        replica = psutil.Process(self._random.choice(candidates[stage]))
        engines = [child for child in replica.children(recursive=True) if is_engine(child)]
        victim = self._random.choice([replica, *engines])
        victim.kill()
        name = stage if victim is replica else f"{stage}:engine"
        self.kills.append((name, time.monotonic()))
        logger.info("killed %s, of %s", name, {stage: len(replicas) for stage, replicas in candidates.items()})

    def num_kills(self, stage: str, since: float, until: float) -> int:
        """Kills of this stage in a span of time."""
        return sum(since <= moment <= until for name, moment in self.kills if name.partition(":")[0] == stage)


def live_replicas(service: Server, stage: str) -> list[int]:
    """Process ids of the stage's replicas that can serve."""
    if stage != "ingress":
        return [replica["process_id"] for replica in stage_status(service, stage)]
    return [process.pid for process in _ingress_processes(service) if _answers(process)]


def _ingress_processes(service: Server) -> Sequence[psutil.Process]:
    """The processes of the ingress replicas, those that start included."""
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if is_replica(process) and "ingress" in process.cmdline()[0]:
                found.append(process)
    return found


def is_replica(process: psutil.Process) -> bool:
    """Whether this is a replica's process, which Ray names after its class and deployment."""
    return any("ServeReplica" in part for part in process.cmdline())


def is_engine(process: psutil.Process) -> bool:
    """Whether this is the process of a vLLM engine."""
    return any(_ENGINE in part for part in process.cmdline())


def _answers(process: psutil.Process) -> bool:
    """Whether the replica's own HTTP server, to which HAProxy passes requests on, is there."""
    try:
        ports = [connection.laddr.port for connection in process.net_connections("tcp")]
    except psutil.Error:
        return False
    for port in set(ports) & set(_INGRESS_PORTS):
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=_HEALTH_TIMEOUT_S).ok:
                return True
    return False
