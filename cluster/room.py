"""Room at a stage, as one ingress replica sees it: who finds every replica full waits, and nobody new is let in."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from cluster.request import RequestContext
from transfer import RetryableError

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_T = TypeVar("_T")


class StageRoom:
    """Calls one stage again while it has no room: what is full is not broken, so no attempt is lost.

    The stage counts as full from an answer that says so until whoever was told so asks again.
    """

    def __init__(self, refusal: type[RetryableError]) -> None:
        """Args: `refusal`: how this stage says that it has no room."""
        self._refusal = refusal
        self._full_until = -math.inf

    @property
    def is_full(self) -> bool:
        """Whether somebody waits for room."""
        return time.monotonic() < self._full_until

    async def call(self, context: RequestContext, wait_s: float, call: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """The result of `call`.

        Args:
            wait_s: for how long it is repeated; never beyond the request's deadline.

        Raises:
            RetryableError: the refusal, when that time is over.
        """
        wait = _Wait(context, wait_s)
        while True:
            try:
                return await call()
            except self._refusal as error:
                await self._pause_or_raise(wait, error)

    async def stream(
        self, context: RequestContext, wait_s: float, call: Callable[[], AsyncGenerator[_T, None]]
    ) -> AsyncGenerator[_T, None]:
        """The items of `call`, as `call`; a stage that refuses has given none."""
        wait = _Wait(context, wait_s)
        while True:
            try:
                async with contextlib.aclosing(call()) as items:
                    async for item in items:
                        yield item
                return
            except self._refusal as error:
                await self._pause_or_raise(wait, error)

    async def _pause_or_raise(self, wait: _Wait, error: RetryableError) -> None:
        pause_s = wait.next_pause_s()
        if not pause_s:
            raise error
        if not wait.counted:  # One wait is one retry, however often it asks.
            wait.counted = True
            wait.context.trace.retried(error.code)
        self._full_until = max(self._full_until, time.monotonic() + pause_s)
        await asyncio.sleep(pause_s)


class _Wait:
    """One call's wait: pauses that grow, until their time is over."""

    def __init__(self, context: RequestContext, wait_s: float) -> None:
        self.context = context
        self.counted = False
        self._ends = time.monotonic() + min(wait_s, context.deadline.remaining_s())
        self._pause_s = _FIRST_PAUSE_S / 2

    def next_pause_s(self) -> float:
        """0 when no time is left."""
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return max(0.0, min(self._pause_s, self._ends - time.monotonic()))
