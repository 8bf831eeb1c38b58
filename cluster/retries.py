"""How often a step of a request is tried, and the pauses between its tries."""

from __future__ import annotations

import asyncio
import logging

from cluster.request import RequestContext
from transfer import RetryableError

logger = logging.getLogger(__name__)


class Retries:
    """The attempts of one step."""

    def __init__(self, context: RequestContext, attempts: int) -> None:
        """Args: `attempts`: how many there are in all."""
        self._context = context
        self._attempts = attempts
        self._attempt = 1

    def start_over(self) -> None:
        """Count from the first attempt again: the last one got the step further."""
        self._attempt = 1

    async def pause_or_raise(self, error: RetryableError) -> None:
        """Wait before another try, or raise `error` when it was the last one."""
        if self._attempt == self._attempts:
            raise error
        context = self._context
        logger.info("request %s: attempt %d failed (%s), trying again", context.request_id, self._attempt, error)
        pause_s = 0.1 * 4 ** (self._attempt - 1)
        if pause_s >= context.deadline.remaining_s():
            raise error
        context.trace.retried(error.code)
        await asyncio.sleep(pause_s)
        self._attempt += 1
