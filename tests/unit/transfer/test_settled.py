"""Guards: a future that is settled from the start answering otherwise than one that has become so."""

import asyncio
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, InvalidStateError, as_completed, wait
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


@pytest.mark.parametrize("outcome", [5, Busy("full")])
def test_it_can_be_waited_for_with_others(outcome: Any) -> None:
    pending: Future[int] = Future()
    settled, ordinary, again = SettledFuture(outcome), become(outcome), SettledFuture(outcome)
    for reason in (FIRST_COMPLETED, FIRST_EXCEPTION):
        assert wait([settled], 0, reason) == ({settled}, set())
        if reason == FIRST_COMPLETED or isinstance(outcome, Busy):
            assert wait([settled, ordinary, again, pending], 5, reason) == ({settled, ordinary, again}, {pending})
    assert wait([settled, pending], 0) == ({settled}, {pending})
    assert set(as_completed([settled, again, ordinary], 5)) == {settled, again, ordinary}
    completed = as_completed([settled, pending], 5)
    assert next(completed) is settled
    pending.set_result(1)
    assert list(completed) == [pending]


def test_it_cannot_be_settled_again() -> None:
    settled = SettledFuture(5)
    for change in (lambda: settled.set_result(6), lambda: settled.set_exception(Busy("full"))):
        with pytest.raises(InvalidStateError):
            change()
    assert settled.result() == 5
    with pytest.raises(AttributeError):
        _ = settled.unheard_of
