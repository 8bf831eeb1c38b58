"""One request's way through the stages: encode, prefill, decode.

    encode    media items      -> tickets (the embeddings are still being computed)
    prefill   prompt + tickets -> KV cache, first token; the engine fetches the embeddings itself
    decode    prompt + KV      -> the other tokens; the first one, too, where prefill cannot give it

A retryable failure before the first token is tried again elsewhere, `encode_attempts` times in all and within the
request's deadline; after it, what is left of the sequence is generated elsewhere, where that gives the same tokens, and
the stream goes on. A stage that is full is asked again: for `busy_wait_s` by a request for which no stage has worked
yet, within its deadline by another one. Every way out gives up every lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from vllm.outputs import RequestOutput

from cluster.continuation import Continuation
from cluster.leases import RequestLeases
from cluster.request import Generation, RequestContext, TicketedItem
from cluster.room import StageRoom
from cluster.stages import DecodeStage, EncoderStage, PrefillStage
from llm_workers.messages import DecodeRequest, PrefillRequest, PrefillResult
from transfer import (
    Busy,
    DeadlineExceeded,
    EncodeReply,
    EncodeRequest,
    MediaItem,
    Modality,
    OptionValue,
    QueueFull,
    RetryableError,
    TerminalError,
    TriptychError,
    WorkerLost,
)

logger = logging.getLogger(__name__)


class Pipeline:
    """The stages of one service in their order; stages that the topology lacks are None.

    `busy_wait_s`: how long a request that has cost nothing yet waits for room before it is turned away.
    """

    def __init__(
        self,
        encoder: EncoderStage | None,
        prefill: PrefillStage | None,
        decode: DecodeStage,
        *,
        attempts: int,
        busy_wait_s: float,
    ) -> None:
        self._encoder = encoder
        self._prefill_stage = prefill
        self._decode_stage = decode
        self._attempts = attempts
        self._busy_wait_s = busy_wait_s
        self._encoder_room = StageRoom(Busy)
        self._prefill_room, self._decode_room = StageRoom(QueueFull), StageRoom(QueueFull)

    @property
    def is_full(self) -> bool:
        """Whether requests that were let in wait for room at a stage that every request needs."""
        return self._prefill_room.is_full or self._decode_room.is_full

    def ask(
        self, context: RequestContext, media: MediaItem, options: tuple[tuple[str, OptionValue], ...]
    ) -> asyncio.Task[TicketedItem]:
        """Begin to get one item's ticket, while the rest of the request is still being read; `encode` waits for it."""
        context.trace.mark("tickets_asked")
        task = asyncio.ensure_future(self._ticket(context, media, options))
        context.asked.add(task)
        return task

    async def encode(
        self, context: RequestContext, asked: Sequence[tuple[Modality, asyncio.Task[TicketedItem]]]
    ) -> list[TicketedItem]:
        """The tickets of all items, each asked for by itself so that items of one prompt spread over the encoders.

        Raises:
            TriptychError: one item cannot be encoded; the message says which. The tickets of the others are given up.
        """
        tasks = [task for _, task in asked]
        try:
            tickets = list(await asyncio.gather(*tasks))
            context.trace.mark("tickets_taken")
            return tickets
        except TriptychError as error:
            index = next((i for i, task in enumerate(tasks) if task.done() and task.exception() is error), 0)
            raise type(error)(f"{asked[index][0]} {index + 1} of {len(asked)}: {error.message}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def generate(self, context: RequestContext, generation: Generation) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one sequence.

        Raises:
            TriptychError: a stage failed terminally, too often without a token in between, or in the middle of a
                sequence that cannot be split.
        """
        continuation = Continuation(generation.params)
        attempt = 1
        while True:
            given = continuation.given
            try:
                async with contextlib.aclosing(self._attempt(context, generation, given)) as outputs:
                    async for output in outputs:
                        continuation.add(output)
                        yield output
                return
            except QueueFull:
                raise  # It has been waited for.
            except RetryableError as error:
                if continuation.finished:
                    return  # Only the end of the call was lost.
                if not continuation.is_possible():
                    raise
                # Prefill gives a token with every attempt; that alone gets a sequence nowhere.
                if len(continuation.given) - len(given) > (0 if self._prefill_stage is None else 1):
                    attempt = 1
                await self._pause_or_raise(context, attempt, error)
                attempt += 1
                generation = await self._with_live_tickets(context, generation, error)

    async def _attempt(
        self, context: RequestContext, generation: Generation, given: tuple[int, ...]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Prefill, then decode; without a prefill stage decode computes the prompt itself.

        Args:
            given: tokens of the answer that the client has already: computed with the prompt, not generated again.
        """
        prompt = generation.prompt.followed_by(given)
        prefilled = None
        wait_s = math.inf if given or generation.items else self._busy_wait_s
        if (stage := self._prefill_stage) is not None:
            request = PrefillRequest(
                request_id=generation.request_id,
                prompt=prompt,
                params=generation.params,
                embeddings=generation.refs(),
                timeout_s=context.deadline.remaining_s(),
                options=generation.options,
                num_given_tokens=len(given),
            )
            context.trace.mark("prefill_called")
            prefilled = await self._prefill_room.call(
                context, wait_s, lambda: stage.prefill(replace(request, timeout_s=context.deadline.remaining_s()))
            )
            wait_s = math.inf
            context.trace.mark("prefill_returned")
            context.trace.mark_engine("prefill", prefilled.output)
            context.leases.hand_over(generation.refs())
        begun = False
        try:
            if prefilled is not None and prefilled.gives_first_token:
                context.trace.mark("first_output")
                given = (*given, *prefilled.output.outputs[0].token_ids)
                prompt = generation.prompt.followed_by(given)
                yield prefilled.output
            decode_request = DecodeRequest(
                request_id=generation.request_id,
                prompt=prompt,
                params=generation.params,
                kv_params=prefilled.kv_params if prefilled else None,
                embeddings=() if prefilled else generation.refs(),
                timeout_s=context.deadline.remaining_s(),
                options=generation.options,
                num_given_tokens=len(given),
            )
            context.trace.mark("decode_called")
            decoded = self._decode_room.stream(
                context,
                wait_s,
                lambda: self._decode_stage.decode(replace(decode_request, timeout_s=context.deadline.remaining_s())),
            )
            async with contextlib.aclosing(decoded) as outputs:
                async for output in outputs:
                    if not begun:
                        begun = True
                        context.trace.mark("first_output")
                        context.trace.mark("decode_output")
                        context.trace.mark_engine("decode", output)
                        if not given:
                            _complete_first_output(output, prefilled)
                        context.leases.hand_over(generation.refs())
                    yield output
        finally:
            if prefilled is not None and not begun:
                await self._release_kv(generation.request_id, prefilled)

    async def _ticket(
        self, context: RequestContext, media: MediaItem, options: tuple[tuple[str, OptionValue], ...]
    ) -> TicketedItem:
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

        attempt = 1
        while True:
            try:
                reply = await self._encoder_room.call(context, self._busy_wait_s, reply_with_room)
            except Busy:
                raise  # It has been waited for.
            except RetryableError as error:
                await self._pause_or_raise(context, attempt, error)
                attempt += 1
                continue
            (ticket,) = reply.tickets
            assert ticket is not None
            context.leases.take(ticket.ref())
            return TicketedItem(media, options, ticket)

    async def _release_kv(self, request_id: str, prefilled: PrefillResult) -> None:
        """Have prefill free a KV cache that no decode worker took; its lease there ends it otherwise."""
        with contextlib.suppress(TriptychError):
            await asyncio.shield(self._decode_stage.release_kv(request_id, prefilled.kv_params))

    async def _with_live_tickets(
        self, context: RequestContext, generation: Generation, error: RetryableError
    ) -> Generation:
        """The generation with tickets that can be fetched: the same ones when only an engine died, else new ones."""
        if isinstance(error, WorkerLost) and all(context.leases.holds(ref) for ref in generation.refs()):
            return generation
        items = []
        for item in generation.items:
            context.leases.drop(item.ticket.ref())
            items.append(await self._ticket(context, item.media, item.options))
        if any(old.ticket.item_key != new.ticket.item_key for old, new in zip(generation.items, items, strict=True)):
            # The prompt's length and hashes were made from the old content, for example of a URL that changed.
            raise TerminalError("a media item changed while the request was being served")
        return replace(generation, items=tuple(items))

    async def _pause_or_raise(self, context: RequestContext, attempt: int, error: RetryableError) -> None:
        """Wait before another try, or raise `error` when it was the last one."""
        if attempt == self._attempts:
            raise error
        logger.info("request %s: attempt %d failed (%s), trying again", context.request_id, attempt, error)
        pause_s = 0.1 * 4 ** (attempt - 1)
        if pause_s >= context.deadline.remaining_s():
            raise error
        context.trace.retried(error.code)
        await asyncio.sleep(pause_s)


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


def _complete_first_output(output: RequestOutput, prefilled: PrefillResult | None) -> None:
    """Add what only prefill knows: it alone computed the prompt."""
    if prefilled is not None:
        output.prompt_logprobs = prefilled.output.prompt_logprobs
        output.num_cached_tokens = prefilled.output.num_cached_tokens
