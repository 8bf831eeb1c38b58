"""KV caches that nobody pulls: each is asked for until it is free, and no request waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from vllm.outputs import RequestOutput

from cluster.kv_releases import KVReleases
from llm_workers.messages import DecodeRequest, KVParams, PrefillResult
from transfer import DeadlineExceeded, TriptychError, WorkerLost

_OUTPUT = RequestOutput("r", None, [1], None, [], finished=True)
_CACHE = PrefillResult({"cache": 1}, _OUTPUT)


class _Decode:
    """Answers when it is let, with the next of its errors."""

    def __init__(self, *errors: TriptychError) -> None:
        self.errors = list(errors)
        self.let = asyncio.Event()
        self.released: list[tuple[str, KVParams]] = []

    def decode(self, request: DecodeRequest) -> AsyncGenerator[RequestOutput, None]:
        raise AssertionError("nothing is decoded here")

    async def release_kv(self, request_id: str, kv_params: KVParams, timeout_s: float) -> None:
        assert timeout_s > 0
        await self.let.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.released.append((request_id, kv_params))


async def test_a_release_is_asked_for_again_until_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.kv_releases._PAUSE_S", 0.01)
    decode = _Decode(WorkerLost("dead"), DeadlineExceeded("the queue is long"))
    releases = KVReleases(decode)
    releases.release("r", _CACHE)
    assert not decode.released
    decode.let.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*releases._tasks)
    assert decode.released == [("r", {"cache": 1})]


async def test_a_release_that_is_never_heard_ends_with_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.kv_releases._PAUSE_S", 0.01)
    monkeypatch.setattr("cluster.kv_releases._WAIT_S", 0.1)
    decode = _Decode(*[WorkerLost("dead")] * 1000)
    decode.let.set()
    releases = KVReleases(decode)
    releases.release("r", _CACHE)
    async with asyncio.timeout(10):
        await asyncio.gather(*releases._tasks)
    assert not decode.released
    assert 900 < len(decode.errors) < 1000
