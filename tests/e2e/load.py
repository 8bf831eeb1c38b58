"""Questions asked without a pause by so many clients, each answer compared with the one that is expected."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.conftest import MODEL_NAME
from tests.e2e.media import draw
from tests.e2e.servers import Server

logger = logging.getLogger(__name__)
_TEXTS = ("Count the boxes, please.", "Was ist das?", "描述这张图片。", "Tell me a long story about all of it, slowly.")
# In logarithms of probabilities. Batches of 6 and of 1 were seen to take different tokens that were 2e-5 apart.
_UNDECIDED = 1e-4
# Where a pool of httpx closes idle connections, it may close one that it has just given to a request.
KEEP_CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)


@dataclass(frozen=True)
class Ask:
    """One request: how many pictures, how many tokens, streamed or not, and how many times larger the pictures are."""

    number: int
    num_pictures: int
    num_tokens: int
    stream: bool
    scale: int = 1

    def body(self) -> dict[str, Any]:
        """The chat request."""
        content: list[dict[str, Any]] = [{"type": "text", "text": _TEXTS[self.number % len(_TEXTS)]}]
        for index in range(self.num_pictures):
            width, height = self.scale * (90 + 17 * (self.number % 9)), self.scale * (70 + 31 * index)
            picture = draw(9000 + 10 * self.number + index, width, height, "jpeg")
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


async def answers_to(service: Server, asks: Iterable[Ask], timeout_s: float) -> dict[Ask, Answer]:
    """The answers, asked for one after the other.

    Raises:
        ServiceError, httpx.TransportError: as `answer_to`.
    """
    async with httpx.AsyncClient(base_url=service.url, timeout=timeout_s) as client:
        return {ask: await answer_to(client, ask, ask.body()) for ask in asks}


async def decided_answers_to(service: Server, asks: Iterable[Ask], timeout_s: float) -> dict[Ask, Answer]:
    """The answers to those of the questions in which the model is nowhere undecided.

    Where two tokens are as likely as each other a batch of another size may take the other one.
    """
    answers: dict[Ask, Answer] = {}
    async with httpx.AsyncClient(base_url=service.url, timeout=timeout_s) as client:
        for ask in asks:
            body = {**ask.body(), "stream": False, "logprobs": True, "top_logprobs": 2}
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != httpx.codes.OK:
                raise ServiceError(response.text)
            choice = response.json()["choices"][0]
            likely = [[top["logprob"] for top in token["top_logprobs"]] for token in choice["logprobs"]["content"]]
            if min(first - second for first, second in likely) > _UNDECIDED:
                answers[ask] = whole_answer(choice)
    return answers


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
        return whole_answer(response.json()["choices"][0])
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


def whole_answer(choice: dict[str, Any]) -> Answer:
    """The answer in one choice of a response."""
    return Answer(tuple(choice["token_ids"]), choice["message"]["content"] or "", choice["finish_reason"])


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

    async def run(self, service: Server, goes_on: Callable[[], bool]) -> None:
        """Ask for as long as that is true, and wait for the last answers."""
        bodies = {ask: ask.body() for ask in self.expected}
        async with httpx.AsyncClient(base_url=service.url, timeout=self.timeout_s, limits=KEEP_CONNECTIONS) as client:

            async def one_client(seed: int) -> None:
                order = random.Random(seed)
                while goes_on():
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
