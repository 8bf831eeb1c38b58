"""Calls to replicas: a stream lets others work, and what a replica raises is what the pipeline sees."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cluster.ray_stages import _stream
from transfer import BadMedia, DeadlineExceeded, TriptychError, WorkerLost


class Response:
    """A Serve response whose items are all there, then ends as it is told."""

    def __init__(self, num_items: int, error: BaseException | None = None, pause_s: float = 0.0) -> None:
        self._left = num_items
        self._error = error
        self._pause_s = pause_s
        self.cancelled = False

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> int:
        if self._left == 0:
            await asyncio.sleep(self._pause_s)
            raise self._error or StopAsyncIteration
        self._left -= 1
        return self._left

    def cancel(self) -> None:
        self.cancelled = True


async def test_items_that_are_there_already_leave_turns_for_others() -> None:
    """Else a stream that is read late leaves the ingress as a whole at its end."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    items = [item async for item in _stream(Response(50), WorkerLost, 10)]
    task.cancel()
    assert len(items) == 50
    assert turns >= 50


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (BadMedia("damaged"), BadMedia),
        (asyncio.CancelledError(), WorkerLost),  # the replica's own, as it shuts down
        (RuntimeError("a defect"), TriptychError),
    ],
)
async def test_errors_are_typed(raised: BaseException, seen: type[TriptychError]) -> None:
    response = Response(1, raised)
    with pytest.raises(TriptychError) as caught:
        [item async for item in _stream(response, WorkerLost, 10)]
    assert type(caught.value) is seen
    assert not response.cancelled


async def test_a_call_that_no_replica_takes_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.ray_stages._GRACE_S", 0.01)
    response = Response(0, pause_s=60)
    with pytest.raises(DeadlineExceeded):
        [item async for item in _stream(response, WorkerLost, 0.01)]
    assert response.cancelled


async def test_leaving_early_cancels_the_call() -> None:
    response = Response(5)
    async with contextlib.aclosing(_stream(response, WorkerLost, 10)) as items:
        async for _ in items:
            break
    assert response.cancelled
