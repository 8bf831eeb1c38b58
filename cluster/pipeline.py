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
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from vllm.outputs import RequestOutput

from cluster.continuation import Continuation
from cluster.kv_releases import KVReleases
from cluster.request import Generation, RequestContext, TicketedItem
from cluster.retries import Retries
from cluster.room import StageRoom
from cluster.stages import DecodeStage, EncoderStage, PrefillStage
from cluster.tickets import TicketSource
from llm_workers.messages import DecodeRequest, PrefillRequest, PrefillResult
from transfer import (
    MediaItem,
    Modality,
    OptionValue,
    QueueFull,
    RetryableError,
    TerminalError,
    TriptychError,
    WorkerLost,
)


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
        self._tickets = TicketSource(encoder, attempts)
        self._prefill_stage = prefill
        self._decode_stage = decode
        self._kv_releases = KVReleases(decode)
        self._attempts = attempts
        self._busy_wait_s = busy_wait_s
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
        wait_s = math.inf if context.asked.taken else self._busy_wait_s
        task = asyncio.ensure_future(self._tickets.ticket(context, media, options, wait_s))
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
            context.asked.taken = True
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
        retries = Retries(context, self._attempts)
        while True:
            given = continuation.given
            try:
                async with contextlib.aclosing(self._attempt(context, generation, given)) as outputs:
                    async for output in outputs:
                        continuation.add(output)
                        yield output
                if not continuation.finished:
                    raise WorkerLost("the stream of tokens ended before its last one")
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
                    retries.start_over()
                await retries.pause_or_raise(error)
                generation = await self._with_live_tickets(context, generation, error)

    async def _attempt(
        self, context: RequestContext, generation: Generation, given: tuple[int, ...]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Prefill, then decode; without a prefill stage decode computes the prompt itself.

        Args:
            given: tokens of the answer that the client has already: computed with the prompt, not generated again.
        """
        prefilled = await self._prefilled(context, generation, given)
        begun = False
        try:
            if prefilled is not None and prefilled.gives_first_token:
                context.trace.mark("first_output")
                given = (*given, *prefilled.output.outputs[0].token_ids)
                ended = prefilled.output.finished  # Read now: whoever merges sequences writes it.
                yield prefilled.output
                if ended:
                    return
            async with contextlib.aclosing(self._decoded(context, generation, given, prefilled)) as outputs:
                async for output in outputs:
                    if not begun:
                        begun = True
                        _trace_decode(context, output)
                        if prefilled is None:
                            _give_up_computed(context, generation)
                        elif not given:
                            output.prompt_logprobs = prefilled.output.prompt_logprobs
                    if prefilled is not None:
                        # Decode counts what it pulled; and readers of a stream take the last output's word.
                        output.num_cached_tokens = prefilled.output.num_cached_tokens
                    yield output
        finally:
            if prefilled is not None and not begun:
                self._kv_releases.release(generation.request_id, prefilled)

    async def _prefilled(
        self, context: RequestContext, generation: Generation, given: tuple[int, ...]
    ) -> PrefillResult | None:
        """What prefill made of the prompt, whose leases end with that; None without a prefill stage."""
        if self._prefill_stage is None:
            return None
        stage = self._prefill_stage
        request = PrefillRequest(
            request_id=generation.request_id,
            prompt=generation.prompt.followed_by(given),
            params=generation.params,
            embeddings=generation.refs(),
            timeout_s=context.deadline.remaining_s(),
            options=generation.options,
            num_given_tokens=len(given),
        )
        context.trace.mark("prefill_called")
        prefilled = await self._prefill_room.call(
            context,
            self._first_wait_s(generation, given),
            lambda: stage.prefill(replace(request, timeout_s=context.deadline.remaining_s())),
        )
        context.trace.mark("prefill_returned")
        context.trace.mark_engine("prefill", prefilled.output)
        _give_up_computed(context, generation)
        return prefilled

    def _decoded(
        self, context: RequestContext, generation: Generation, given: tuple[int, ...], prefilled: PrefillResult | None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Decode's outputs, behind what prefill computed if there is such a stage."""
        request = DecodeRequest(
            request_id=generation.request_id,
            prompt=generation.prompt.followed_by(given),
            params=generation.params,
            kv_params=prefilled.kv_params if prefilled else None,
            embeddings=() if prefilled else generation.refs(),
            timeout_s=context.deadline.remaining_s(),
            options=generation.options,
            num_given_tokens=len(given),
        )
        context.trace.mark("decode_called")
        return self._decode_room.stream(
            context,
            math.inf if prefilled else self._first_wait_s(generation, given),
            lambda: self._decode_stage.decode(replace(request, timeout_s=context.deadline.remaining_s())),
        )

    def _first_wait_s(self, generation: Generation, given: tuple[int, ...]) -> float:
        """For how long the stage that computes the prompt is waited for: without end where another has worked."""
        return math.inf if given or generation.items else self._busy_wait_s

    async def _with_live_tickets(
        self, context: RequestContext, generation: Generation, error: RetryableError
    ) -> Generation:
        """The generation with tickets that can be fetched: the same ones when only an engine died, else new ones."""
        if isinstance(error, WorkerLost) and all(context.leases.holds(ref) for ref in generation.refs()):
            return generation
        for item in generation.items:
            context.leases.drop(item.ticket.ref())
        asked = [(item.media.modality, self.ask(context, item.media, item.options)) for item in generation.items]
        items = await self.encode(context, asked)
        if any(old.ticket.item_key != new.ticket.item_key for old, new in zip(generation.items, items, strict=True)):
            # The prompt's length and hashes were made from the old content, for example of a URL that changed.
            raise TerminalError("a media item changed while the request was being served")
        return replace(generation, items=tuple(items))


def _give_up_computed(context: RequestContext, generation: Generation) -> None:
    """The prompt is computed: its engine has released the leases that it was given, and nobody wants the others."""
    context.leases.hand_over(generation.refs())
    for ref in generation.spare_refs():
        context.leases.drop(ref)


def _trace_decode(context: RequestContext, output: RequestOutput) -> None:
    """Note when decode's first output came; it is the client's first one where prefill gave none."""
    context.trace.mark("first_output")
    context.trace.mark("decode_output")
    context.trace.mark_engine("decode", output)
