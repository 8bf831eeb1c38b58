"""Many requests at once: all answered, all right, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from benchmarks.memory import memory_below
from tests.e2e.conftest import MODEL_NAME
from tests.e2e.leases import stage_status, wait_until_nothing_is_held
from tests.e2e.media import draw
from tests.e2e.servers import Server

_NUM_PICTURES = 40
_NUM_REQUESTS = 200
_NUM_TOKENS = 8
_NUM_DISTINCT = 180
_MAX_GROWTH_MIB = 48  # of some 9 GiB; Python's garbage alone comes and goes by 30 MiB in an ingress


def _messages(number: int) -> list[Any]:
    picture = draw(3000 + number, 60 + 13 * (number % 20), 50 + 11 * (number % 17), "jpeg")
    content = [{"type": "image_url", "image_url": {"url": picture.data_url}}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": content}]


def _expected(reference: OpenAI) -> list[list[int]]:
    answers = []
    for number in range(_NUM_PICTURES):
        answer: Any = reference.chat.completions.create(
            model=MODEL_NAME,
            messages=_messages(number),
            max_tokens=_NUM_TOKENS,
            temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        answers.append(answer.choices[0].token_ids)
    return answers


async def _ask_in_turns(service: Server, numbers: Iterable[int], num_tokens: int, at_a_time: int) -> None:
    """Ask about these pictures, so many at a time."""
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=180) as client:
        slots = asyncio.Semaphore(at_a_time)

        async def ask(number: int) -> None:
            async with slots:
                await client.chat.completions.create(
                    model=MODEL_NAME, messages=_messages(number), max_tokens=num_tokens, temperature=0
                )

        await asyncio.gather(*(ask(number) for number in numbers))


async def _ask_all(service: Server) -> list[list[int]]:
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=180) as client:

        async def ask(number: int) -> list[int]:
            answer: Any = await client.chat.completions.create(
                model=MODEL_NAME,
                messages=_messages(number % _NUM_PICTURES),
                max_tokens=_NUM_TOKENS,
                temperature=0,
                extra_body={"return_token_ids": True, "ignore_eos": True},
            )
            tokens: list[int] = answer.choices[0].token_ids
            return tokens

        return await asyncio.gather(*(ask(number) for number in range(_NUM_REQUESTS)))


@pytest.mark.timeout(900)
def test_200_requests_at_once(service: Server, reference: OpenAI) -> None:
    expected = _expected(reference)
    answers = asyncio.run(_ask_all(service))
    wrong = [number for number, tokens in enumerate(answers) if tokens != expected[number % _NUM_PICTURES]]
    assert not wrong
    wait_until_nothing_is_held(service)
    for stage in ("encoder", "prefill", "decode"):
        assert len(stage_status(service, stage)) == 2


@pytest.mark.timeout(900)
def test_memory_is_flat_under_more_loads(service: Server) -> None:
    """A leak takes its part of every load of 200; a heap that finds no hole for a new mixture of lengths, once."""
    sizes = []
    for _ in range(4):
        asyncio.run(_ask_all(service))
        wait_until_nothing_is_held(service)
        sizes.append(memory_below(service.process.pid))
    grown = [
        {name: (size - before[name]) >> 20 for name, size in after.items() if name in before}
        for before, after in pairwise(sizes)
    ]
    assert median(sum(processes.values()) for processes in grown) < _MAX_GROWTH_MIB, grown


def test_every_replica_gets_a_share(service: Server) -> None:
    """Two replicas of each stage: each one does at least a fifth of a load of distinct pictures.

    Of a long one: where a stage hardly has two calls at a time, as decode here, one that takes long at one replica
    sends all others to the replica that is free, and rightly.
    """

    def counts(stage: str, field: str) -> dict[int, int]:
        return {replica["process_id"]: replica[field] for replica in stage_status(service, stage)}

    fields = {"encoder": "num_encoded", "prefill": "num_finished", "decode": "num_finished"}
    before = {stage: counts(stage, field) for stage, field in fields.items()}

    asyncio.run(_ask_in_turns(service, range(10_000, 10_000 + _NUM_DISTINCT), num_tokens=4, at_a_time=16))
    for stage, field in fields.items():
        done = {pid: number - before[stage].get(pid, 0) for pid, number in counts(stage, field).items()}
        assert len(done) == 2, (stage, done)
        assert sum(done.values()) >= _NUM_DISTINCT, (stage, done)
        assert min(done.values()) >= _NUM_DISTINCT / 5, (stage, done)


def test_repeated_pictures_are_encoded_once_and_on_one_replica(service: Server) -> None:
    """Every fifth request has a picture that an earlier one had: each picture is encoded once in the whole stage."""
    numbers = [20_000 + (number - 3 if number % 5 == 4 else number) for number in range(50)]

    def num_encoded() -> int:
        return sum(replica["num_encoded"] for replica in stage_status(service, "encoder"))

    before = num_encoded()
    asyncio.run(_ask_in_turns(service, numbers, num_tokens=1, at_a_time=4))
    assert len(set(numbers)) <= 0.85 * len(numbers)
    assert num_encoded() - before == len(set(numbers))
