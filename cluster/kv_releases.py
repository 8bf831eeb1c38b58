"""KV caches of prefill that no decode worker will pull: freed behind the requests that they were made for."""

from __future__ import annotations

import asyncio
import logging

from cluster.stages import DecodeStage
from llm_workers.messages import PrefillResult
from transfer import TriptychError

logger = logging.getLogger(__name__)

_WAIT_S = 300.0
"""As long as prefill holds such a cache by default (see `limits.deadline_s`): after that there is nothing to free."""
_PAUSE_S = 1.0


class KVReleases:
    """Asks for each until it is heard: under load, when most requests are given up, decode has the longest queue."""

    def __init__(self, decode: DecodeStage) -> None:
        self._decode = decode
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps no reference to its tasks

    def release(self, request_id: str, prefilled: PrefillResult) -> None:
        """Have it freed; returns at once."""
        task = asyncio.ensure_future(self._ask(request_id, prefilled))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, request_id: str, prefilled: PrefillResult) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _WAIT_S
        while (left_s := deadline - loop.time()) > 0:
            try:
                await self._decode.release_kv(request_id, prefilled.kv_params, left_s)
            except TriptychError as error:
                logger.warning("request %s: its KV cache is not released yet: %s", request_id, error)
                await asyncio.sleep(_PAUSE_S)
            else:
                return
