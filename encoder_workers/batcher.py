"""Packs waiting items into forward passes: decoding ahead in a small pool, the tower on a thread of its own.

    submit --> preparing (pool) --> prepared --> in a pass (tower thread) --> done
                   |                   |               |
                   +-- BadMedia ------ + -- dropped ---+-- EncodeFailed

An item that nobody waits for any more is dropped before it costs a pass. A bad item fails alone, and so does the item
that makes a pass fail: the pass is repeated item by item. One that the device has no memory for is repeated in halves,
and those that follow are no larger than these. What fails in a caller's function is logged and costs nobody else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import torch

from configs.priority import NICENESS, give_way
from encoder_workers.encoder import Encoder
from encoder_workers.media import Media, Prepared
from encoder_workers.pass_time import PassTime
from npu_kernels import is_out_of_memory
from transfer import HostEmbedding
from transfer.errors import Closed, EncodeFailed, EncoderLost, OutOfMemory, TriptychError

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 30.0

Outcome = HostEmbedding | TriptychError
"""An embedding, or why there is none."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One item to encode.

    Attributes:
        cost: patches of the item, which its memory grows with.
        work: what its time grows with (`Encoder.work`).
        traceparent: the request's place in a trace (W3C Trace Context), if it is traced.
        wanted: whether anybody still waits for it; asked before each expensive step.
        done: takes the outcome, once, on a thread of the batcher.
    """

    media: Media
    cost: int
    work: float
    wanted: Callable[[], bool]
    done: Callable[[Outcome], None]
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ItemTimes:
    """The moments of one item on the monotonic clock: given to the batcher, decoding begun, ready for a pass."""

    submitted: float
    begun: float
    prepared: float
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """What one pass held, and its moments on the monotonic clock: its first item's decoding began, the pass itself.

    `num_bytes` are those of the embeddings, of which there are `num_tokens` rows.
    """

    num_patches: int
    num_tokens: int
    num_bytes: int
    begun: float
    pass_begun: float
    finished: float
    items: tuple[ItemTimes, ...]

    @property
    def num_items(self) -> int:
        """Items of this pass."""
        return len(self.items)


def ignore_pass(times: BatchTimes) -> None:
    """Nobody watches the passes."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    job: EncodeJob
    prepared: Prepared
    times: ItemTimes


class Batcher:
    """Runs an encoder for many callers. `submit` from any thread; `close` lets nothing new in and ends the threads."""

    def __init__(
        self,
        encoder: Encoder,
        max_batch_patches: int,
        target_pass_s: float,
        max_wait_s: float,
        num_prepare_threads: int,
        to_host: Callable[[torch.Tensor], HostEmbedding] = HostEmbedding.of,
        on_pass: Callable[[BatchTimes], None] = ignore_pass,
        num_tower_threads: int | None = None,
    ) -> None:
        """Args:
        target_pass_s: how long a pass of several items takes at most, as far as those before it tell.
        to_host: brings a finished embedding from the encoder's device to where it will be served from.
        on_pass: called after each pass, on the tower's thread; it must not block.
        num_tower_threads: on which PyTorch computes the passes, all other threads then compute alone; None: as it is
            set. Two threads with helpers of their own would be more than a CPU has cores, and OpenMP then puts helpers
            to sleep between any two operations: a tenth of a pass.

        Raises EncoderLost when the tower's thread does not begin in time.
        """
        self._encoder = encoder
        self._to_host = to_host
        self._on_pass = on_pass
        self._max_batch_patches = max_batch_patches
        self._pass_time = PassTime(target_pass_s)
        self._max_wait_s = max_wait_s
        self._prepared: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.last_pass: BatchTimes | None = None
        self.num_encoded = 0
        self.num_failed = 0
        self.num_tokens = 0
        self.num_bytes = 0
        self._pool = ThreadPoolExecutor(num_prepare_threads, thread_name_prefix="triptych-prepare")
        self._preparing: set[Future[None]] = set()
        self._num_tower_threads = num_tower_threads
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="triptych-encode", daemon=True)
        self._thread.start()
        if num_tower_threads is not None:
            if not self._begun.wait(_START_TIMEOUT_S):
                self._end_soon()
                raise EncoderLost(f"the encoder's thread has not begun after {_START_TIMEOUT_S:g} s")
            torch.set_num_threads(1)  # of this thread and those that begin later

    @property
    def num_waiting(self) -> int:
        """Prepared items that no pass has taken yet."""
        return len(self._prepared)

    def submit(self, job: EncodeJob) -> None:
        """Encode this item, after those that came before it. Raises Closed."""
        try:
            preparing = self._pool.submit(self._prepare, job, time.monotonic())
        except RuntimeError as error:
            raise Closed("the encoder is closed") from error
        self._preparing.add(preparing)
        preparing.add_done_callback(self._preparing.discard)

    def check_health(self) -> None:
        """Raises EncoderLost when the thread of the passes has died."""
        if not self._closing and not self._thread.is_alive():
            raise EncoderLost("the encoder's thread has died: nothing is encoded any more")

    def close(self) -> None:
        """End all threads but those that are too slow, which are logged; items in no pass are dropped. Idempotent."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        self._end_soon()
        late = wait(tuple(self._preparing), _CLOSE_TIMEOUT_S).not_done
        if not late:
            self._pool.shutdown()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if late or self._thread.is_alive():
            logger.error("%d items are still being prepared, or a pass runs, after %g s", len(late), _CLOSE_TIMEOUT_S)

    def _end_soon(self) -> None:
        with self._changed:
            self._closing = True
            self._prepared.clear()
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, job: EncodeJob, submitted: float) -> None:
        if not job.wanted():
            return
        begun = time.monotonic()
        try:
            prepared = self._encoder.preprocess(self._encoder.decode(job.media))
        except TriptychError as error:
            self._fail(job, error)
        except Exception as error:  # The edge of this thread: every failure becomes the item's own outcome.
            logger.exception("preparing an item failed")
            kind = OutOfMemory if is_out_of_memory(error) else EncodeFailed
            self._fail(job, kind(f"the {job.media.modality} could not be prepared: {type(error).__name__}"))
        else:
            times = ItemTimes(submitted, begun, time.monotonic(), job.traceparent)
            with self._changed:
                if not self._closing:
                    self._prepared.append(_Waiting(job, prepared, times))
                    self._changed.notify_all()

    def _fail(self, job: EncodeJob, error: TriptychError) -> None:
        with self._changed:  # Several threads come here.
            self.num_failed += 1
        _tell(partial(job.done, error))

    def _run(self) -> None:
        if self._num_tower_threads is not None:
            give_way(NICENESS["encoder"])  # before OpenMP makes its helpers, which are as their maker
            torch.set_num_threads(self._num_tower_threads)
            torch.get_num_threads()  # which makes it this thread's own, whatever is set elsewhere afterwards
        self._begun.set()
        while (batch := self._next_batch()) is not None:
            self._encode(batch)

    def _next_batch(self) -> list[_Waiting] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._prepared or self._closing)
            if self._max_wait_s:
                self._changed.wait_for(lambda: self._closing or self._is_full(self._prepared), self._max_wait_s)
            if self._closing:
                return None
            batch = [self._prepared.popleft()]
            while self._prepared and not self._is_full([*batch, self._prepared[0]]):
                batch.append(self._prepared.popleft())
            return batch

    def _is_full(self, items: Collection[_Waiting]) -> bool:
        """Whether these are more than a pass of several items may hold."""
        return (
            sum(waiting.job.cost for waiting in items) > self._max_batch_patches
            or sum(waiting.job.work for waiting in items) > self._pass_time.room
        )

    def _encode(self, batch: list[_Waiting]) -> None:
        """A pass over what is still wanted, or several smaller ones where it fails."""
        batch = [waiting for waiting in batch if waiting.job.wanted()]
        if not batch:
            return
        pass_begun = time.monotonic()
        outcome = self._forward(batch)
        if not isinstance(outcome, TriptychError):
            self._count(batch, outcome, pass_begun)
            for waiting, embedding in zip(batch, outcome, strict=True):
                _tell(partial(waiting.job.done, embedding))
        elif len(batch) == 1:
            self._fail(batch[0].job, outcome)
        elif isinstance(outcome, OutOfMemory):
            self._max_batch_patches = max(1, sum(waiting.job.cost for waiting in batch) // 2)
            middle = len(batch) // 2
            self._encode(batch[:middle])
            self._encode(batch[middle:])
        else:
            for waiting in batch:
                self._encode([waiting])

    def _forward(self, batch: list[_Waiting]) -> list[HostEmbedding] | TriptychError:
        """The embeddings, or why there are none: without a traceback, which would keep the failed pass's tensors."""
        try:
            embeddings = self._encoder.forward([waiting.prepared for waiting in batch])
            return [self._to_host(embedding.tensor) for embedding in embeddings]
        except TriptychError as error:
            logger.warning("a pass over %d items failed: %s", len(batch), error)
            return error.with_traceback(None)
        except Exception as error:  # The edge of this thread: one item's failure must not take the others along.
            logger.exception("a pass over %d items failed", len(batch))
            return EncodeFailed(f"the encoder failed on this item: {type(error).__name__}")

    def _count(self, batch: list[_Waiting], finished: list[HostEmbedding], pass_begun: float) -> None:
        times = BatchTimes(
            num_patches=sum(waiting.job.cost for waiting in batch),
            num_tokens=sum(embedding.shape[0] for embedding in finished),
            num_bytes=sum(embedding.nbytes for embedding in finished),
            begun=min(waiting.times.begun for waiting in batch),
            pass_begun=pass_begun,
            finished=time.monotonic(),
            items=tuple(waiting.times for waiting in batch),
        )
        self._pass_time.ended(sum(waiting.job.work for waiting in batch), times.finished - pass_begun)
        self.num_encoded += len(batch)
        self.num_tokens += times.num_tokens
        self.num_bytes += times.num_bytes
        self.last_pass = times
        _tell(partial(self._on_pass, times))


def _tell(listener: Callable[[], None]) -> None:
    try:
        listener()
    except Exception:  # The edge of a thread: what a listener does must not cost the other items their outcomes.
        logger.exception("who was to be told of an item or a pass failed")
