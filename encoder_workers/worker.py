"""The encoder worker: answers tickets at once, encodes behind them, and holds the results until they are collected.

A plain class; `cluster` makes a Ray deployment of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial

import torch

from configs import TriptychConfig, embedding_fingerprint
from encoder_workers.batcher import Batcher, BatchTimes, EncodeJob, Outcome, ignore_pass
from encoder_workers.cache import ArenaEmbedding, EmbeddingCache
from encoder_workers.embedding_server import start_server
from encoder_workers.encoder import load_encoder
from encoder_workers.encodings import Encoding, Encodings
from encoder_workers.fetch import FetchLimits, MediaFetcher
from encoder_workers.given_embeddings import is_given
from encoder_workers.media import ItemMetadata, Limits, Media
from encoder_workers.memory import check_memory
from encoder_workers.stats import EncoderStats
from transfer import (
    BadMedia,
    Busy,
    DeadlineExceeded,
    EncodeFailed,
    EncodeReply,
    EncodeRequest,
    EncodeTicket,
    HostEmbedding,
    ItemFailure,
    MediaItem,
    TriptychError,
    dtype_name,
    item_key,
    new_transfer_id,
)

logger = logging.getLogger(__name__)


class EncoderWorker:
    """One encoder replica.

    Lifecycle: the constructor loads the tower and binds the embedding server; `encode` any number of times; `close`
    ends both, is idempotent and safe after a failed start. Every ticket's transfer ends in a published embedding, a
    typed failure, a release or the end of its lease.
    """

    def __init__(self, config: TriptychConfig, host: str, on_pass: Callable[[BatchTimes], None] = ignore_pass) -> None:
        """Start.

        Args:
            host: the address at which other nodes reach this one.
            on_pass: called after each pass, on the tower's thread; it must not block.
        """
        if config.encoder is None:
            raise ValueError("this service has no encoder section")
        self._settings = config.encoder
        self._model = config.model
        self._fingerprint = embedding_fingerprint(config)
        self._arena_bytes = config.transfer.arena_bytes if "shm" in config.transfer.channels else 0
        # First, since what it finds wrong is quickly said.
        self._server = start_server(config, host, self._fingerprint)
        tower_threads: int | None = None
        if config.device == "cpu":
            if config.encoder.ranks_per_replica == 1:
                tower_threads = config.encoder.num_threads
            torch.set_num_threads(config.encoder.num_threads if tower_threads is None else 1)
        limits = config.limits
        try:
            self._encoder = load_encoder(
                config.model,
                device=config.device,
                dtype=config.encoder_dtype,
                ranks=config.encoder.ranks_per_replica,
                ops=config.encoder.ops,
                engine=config.encoder.engine,
                trust_remote_code=config.trust_remote_code,
                limits=Limits(limits.item_bytes, limits.pixels, frames=limits.video_frames, video_s=limits.video_s),
            )
        except BaseException:
            self._server.close()
            raise
        self._fetcher = MediaFetcher(
            FetchLimits(limits.item_bytes, limits.fetch_timeout_s, frozenset(limits.allowed_media_hosts))
        )
        self._cache = EmbeddingCache(config.encoder.cache_bytes)
        self._encodings = Encodings()
        self._taken_bytes = 0
        self._num_taken = 0
        try:
            check_memory(self._encoder, config.encoder)
            self._batcher = Batcher(
                self._encoder,
                config.encoder.max_batch_tokens,
                config.encoder.target_pass_s,
                config.encoder.max_batch_wait_s,
                config.encoder.num_threads,
                self._to_host,
                on_pass,
                tower_threads,
            )
        except BaseException:
            self._encoder.close()
            self._server.close()
            raise

    async def encode(self, request: EncodeRequest) -> EncodeReply:
        """Tickets for the items, from their headers; encoding goes on behind.

        Items that cannot be encoded have a failure in the reply instead of a ticket; the others are not touched by it.
        A failure is Busy, before any encoding, where the embedding would find no room beside those of other requests.

        Raises:
            Busy: this replica holds as many items as it may; nothing was begun.
        """
        self._num_taken += len(request.items)
        if self._server.stats().num_leases + len(request.items) > self._settings.max_pending_items:
            raise Busy(f"this encoder holds {self._settings.max_pending_items} items already")
        deadline = time.monotonic() + request.timeout_s
        # An exception of one item, whatever it is, must not cost the others their tickets.
        begun = [asyncio.ensure_future(self._begin(request, item, deadline)) for item in request.items]
        try:
            results = await asyncio.gather(*begun, return_exceptions=True)
        except asyncio.CancelledError:
            # Nobody will get these tickets. All have ended by now, some before they could be cancelled.
            for ended in begun:
                self._give_up(ended)
            raise
        tickets = tuple(result if isinstance(result, EncodeTicket) else None for result in results)
        failures = tuple(
            _item_failure(index, result) for index, result in enumerate(results) if isinstance(result, BaseException)
        )
        return EncodeReply(request.request_id, tickets, failures)

    def stats(self) -> EncoderStats:
        """A moment of this worker."""
        last = self._batcher.last_pass
        server = self._server.stats()
        return EncoderStats(
            process_id=os.getpid(),
            num_leases=server.num_leases,
            num_pending=len(self._encodings),
            num_encoded=self._batcher.num_encoded,
            num_failed=self._batcher.num_failed,
            num_waiting=self._batcher.num_waiting,
            num_tokens=self._batcher.num_tokens,
            num_cache_hits=self._cache.num_hits,
            num_cache_misses=self._cache.num_misses,
            cached_bytes=self._cache.held_bytes,
            taken_bytes=self._taken_bytes,
            encoded_bytes=self._batcher.num_bytes,
            last_begun=last.begun if last else 0.0,
            last_finished=last.finished if last else 0.0,
            server=server,
            num_taken=self._num_taken,
            pending_work=self._encodings.pending_work,
            total_work=self._encodings.total_work,
        )

    def check_health(self) -> None:
        """Raises EncoderLost when this replica cannot encode any more."""
        self._encoder.check_health()
        self._batcher.check_health()
        self._server.check_health()

    def close(self) -> None:
        """Answer what waits with a typed error and free everything."""
        self._server.close()
        self._batcher.close()
        self._encoder.close()

    async def _begin(self, request: EncodeRequest, item: MediaItem, deadline: float) -> EncodeTicket:
        data = await self._fetcher.bytes_of(item)
        self._taken_bytes += len(data)
        media = Media(item.modality, data, request.processor_options)
        announced = asyncio.ensure_future(asyncio.to_thread(self._announce, media, request, deadline))
        try:
            return await asyncio.shield(announced)
        except asyncio.CancelledError:
            # Nobody will get this ticket. Its thread cannot be stopped, so it is given up when it is there.
            announced.add_done_callback(self._give_up)
            raise

    def _give_up(self, announced: asyncio.Future[EncodeTicket]) -> None:
        if not announced.cancelled() and announced.exception() is None:
            self._server.release(announced.result().transfer_id)

    def _announce(self, media: Media, request: EncodeRequest, deadline: float) -> EncodeTicket:
        given = self._encoder.take(media) if self._settings.enable_mm_embeds and is_given(media.data) else None
        metadata = given.metadata if given is not None else self._described(media)
        key = item_key(media.data, media.modality, media.options, self._model, self._encoder.revision, request.tenant)
        ticket = self._ticket(key, metadata)
        # The lease lasts while the request may still ask for the item, however long the queue here is.
        wait_s = deadline - time.monotonic()
        if wait_s <= 0:
            raise DeadlineExceeded("the request's time ended before its media was here")
        self._server.announce(
            ticket.transfer_id,
            key,
            ticket.num_tokens,
            ticket.width,
            ticket.dtype,
            wait_s=wait_s,
            holder=request.request_id,
        )
        try:
            if given is not None:
                self._finish({ticket.transfer_id}, self._to_host(given.tensor))
            else:
                self._start(key, media, metadata, ticket.transfer_id, request.traceparent)
        except BaseException:
            self._server.release(ticket.transfer_id)
            raise
        return ticket

    def _described(self, media: Media) -> ItemMetadata:
        (metadata,) = self._encoder.describe([media])
        if isinstance(metadata, BadMedia):
            raise metadata
        return metadata

    def _ticket(self, key: str, metadata: ItemMetadata) -> EncodeTicket:
        return EncodeTicket(
            item_key=key,
            modality=metadata.modality,
            num_tokens=metadata.num_tokens,
            width=self._encoder.width,
            dtype=dtype_name(self._encoder.dtype),
            layout=self._encoder.layout,
            metadata=metadata.prompt,
            transfer_id=new_transfer_id(),
            endpoints=(self._server.endpoint,),
            expected_bytes=metadata.num_tokens * self._encoder.width * self._encoder.dtype.itemsize,
            fingerprint=self._fingerprint,
        )

    def _start(self, key: str, media: Media, metadata: ItemMetadata, transfer_id: str, traceparent: str | None) -> None:
        """Publish at once what is cached, join an encoding of the same content, or begin one."""
        begun = self._encodings.begin(key, transfer_id, self._encoder.work(metadata), self._cache.get)
        if isinstance(begun, HostEmbedding):
            self._finish({transfer_id}, begun)
        elif begun is not None:
            job = EncodeJob(
                media=media,
                cost=metadata.num_patches,
                work=self._encoder.work(metadata),
                wanted=partial(self._encodings.is_wanted, begun, self._server.is_live),
                done=partial(self._done, begun),
                traceparent=traceparent,
            )
            try:
                self._batcher.submit(job)
            except TriptychError as error:
                self._finish(self._encodings.end(begun), error)  # others may have joined it
                raise

    def _done(self, encoding: Encoding, outcome: Outcome) -> None:
        if isinstance(outcome, HostEmbedding):
            self._cache.put(encoding.key, outcome)
        self._finish(self._encodings.end(encoding), outcome)

    def _to_host(self, tensor: torch.Tensor) -> HostEmbedding:
        """Written once, to where every transfer of it and the cache share it; cached items make room where they can."""
        while (placed := self._server.place(tensor)) is None:
            if tensor.nbytes >= self._arena_bytes or not self._cache.make_room():
                if tensor.is_cpu and tensor.untyped_storage().nbytes() > tensor.nbytes:
                    tensor = tensor.clone()  # A cached part of a pass would keep all of the pass.
                return HostEmbedding.of(tensor)
        return ArenaEmbedding(placed.memory, placed.shape, placed.dtype)

    def _finish(self, transfers: set[str], outcome: Outcome) -> None:
        for transfer_id in transfers:
            if isinstance(outcome, TriptychError):
                self._server.fail(transfer_id, outcome)
            else:
                memory = outcome.lend() if isinstance(outcome, ArenaEmbedding) else outcome.memory
                self._server.publish(transfer_id, memory, outcome.shape, outcome.dtype)


def _item_failure(index: int, error: BaseException) -> ItemFailure:
    if isinstance(error, TriptychError):
        return ItemFailure(index, error.code, error.message)
    if isinstance(error, ValueError):
        return ItemFailure(index, BadMedia.code, str(error))
    logger.error("item %d could not be taken", index, exc_info=error)
    return ItemFailure(index, EncodeFailed.code, f"the item could not be taken: {type(error).__name__}")
