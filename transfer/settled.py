"""A future whose outcome was there before anybody could wait for it; lock and condition are made when asked for.

Those of `concurrent.futures.Future` are a sixth of the time that a small embedding of this host takes.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED
from typing import Any, TypeVar

T = TypeVar("T")


class SettledFuture(Future[T]):
    """Done from the start; otherwise as any other, also for `concurrent.futures.wait` and `as_completed`."""

    _state = FINISHED  # these two functions read it, `_condition` and `_waiters`

    def __init__(self, outcome: T | BaseException) -> None:
        # Without that of the base class, which makes a lock: every method but those of executors is replaced.
        self._outcome = outcome

    @functools.cached_property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # not to be assigned
        return threading.Condition()

    @functools.cached_property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # not to be assigned
        return []

    def result(self, timeout: float | None = None) -> T:
        """The outcome. Raises it when it is an error."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The outcome when it is an error."""
        return self._outcome if isinstance(self._outcome, BaseException) else None

    def done(self) -> bool:
        """Always."""
        return True

    def running(self) -> bool:
        """Never."""
        return False

    def cancel(self) -> bool:
        """Too late."""
        return False

    def cancelled(self) -> bool:
        """Never."""
        return False

    def add_done_callback(self, fn: Callable[[Future[T]], Any]) -> None:
        """Call it now; errors are the caller's."""
        fn(self)

    def __repr__(self) -> str:
        return f"<SettledFuture of {type(self._outcome).__name__}>"
