"""Guards: a future that is settled from the start answering otherwise than one that has become so."""

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from transfer import Busy
from transfer.settled import SettledFuture


def become(outcome: Any) -> "Future[int]":
    future: Future[int] = Future()
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


@pytest.mark.parametrize("outcome", [5, None, Busy("full")])
def test_it_is_as_one_that_has_become_settled(outcome: Any) -> None:
    settled, ordinary = SettledFuture(outcome), become(outcome)
    for ask in ("done", "running", "cancelled", "cancel", "exception"):
        assert getattr(settled, ask)() == getattr(ordinary, ask)(), ask
    called = []
    settled.add_done_callback(called.append)
    assert called == [settled]
    if isinstance(outcome, Busy):
        with pytest.raises(Busy):
            settled.result(1.0)
    else:
        assert settled.result(1.0) == outcome
    assert type(outcome).__name__ in repr(settled)


def test_a_loop_can_wait_for_it() -> None:
    async def wait() -> int:
        return await asyncio.wrap_future(SettledFuture(3))

    assert asyncio.run(wait()) == 3
