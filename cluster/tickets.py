"""One media item's ticket: asked for again while the encoders are full or fail, and its lease taken with it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cluster.leases import RequestLeases
from cluster.request import RequestContext, TicketedItem
from cluster.retries import Retries
from cluster.room import StageRoom
from cluster.stages import EncoderStage
from transfer import (
    Busy,
    DeadlineExceeded,
    EncodeReply,
    EncodeRequest,
    MediaItem,
    OptionValue,
    RetryableError,
    TerminalError,
)


class TicketSource:
    """The encoder stage of a service, for one item at a time."""

    def __init__(self, encoder: EncoderStage | None, attempts: int) -> None:
        """Args: `encoder`: None for a service that takes text only."""
        self._encoder = encoder
        self._attempts = attempts
        self._room = StageRoom(Busy)

    async def ticket(
        self, context: RequestContext, media: MediaItem, options: tuple[tuple[str, OptionValue], ...], wait_s: float
    ) -> TicketedItem:
        """The item with a ticket whose lease is the request's.

        Args:
            wait_s: for how long it waits for room; never beyond the request's deadline.

        Raises:
            TriptychError: the item cannot be encoded, or not now.
        """
        if self._encoder is None:
            raise TerminalError("this service has no encoder stage: it takes text only")
        stage = self._encoder

        async def reply_with_room() -> EncodeReply:
            timeout_s = context.deadline.remaining_s()
            request = EncodeRequest(context.request_id, (media,), options, context.tenant, timeout_s)
            reply = await _reply_or_release(stage.encode(request), timeout_s, context.leases)
            if reply.failures:
                raise reply.failures[0].to_error()
            return reply

        retries = Retries(context, self._attempts)
        while True:
            try:
                reply = await self._room.call(context, wait_s, reply_with_room)
            except Busy:
                raise  # It has been waited for.
            except RetryableError as error:
                await retries.pause_or_raise(error)
                continue
            (ticket,) = reply.tickets
            assert ticket is not None
            context.leases.take(ticket.ref())
            return TicketedItem(media, options, ticket)


async def _reply_or_release(
    call: Coroutine[Any, Any, EncodeReply], timeout_s: float, leases: RequestLeases
) -> EncodeReply:
    """The encoder's reply; when the caller leaves before it is there, its leases are given up as soon as it comes.

    Raises:
        DeadlineExceeded: `timeout_s` passed.
    """
    task = asyncio.ensure_future(call)

    def take_late(done: asyncio.Task[EncodeReply]) -> None:
        if not done.cancelled() and done.exception() is None:
            for ticket in done.result().tickets:
                if ticket is not None:
                    leases.take(ticket.ref())

    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(task)
    except TimeoutError as error:
        task.add_done_callback(take_late)
        raise DeadlineExceeded("the request's time ended while it waited for a ticket") from error
    except asyncio.CancelledError:
        task.add_done_callback(take_late)
        raise
