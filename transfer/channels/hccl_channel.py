"""The hccl channel: payloads go from device to device over two-rank groups that pairs of processes make on demand.

    control connection --first fetch--> pair: a thread and a `Meeting` --both ends meet--> sends and receives in order
                                          |
                                          +-- a failure, or nothing to do for a minute --> torn down; the next fetch
                                                                                           makes another

A reception whose pair fails is `failed`; the client then asks again on the channels that remain. What is sent to a
fetch that has ended is received all the same, and dropped: everything else on the pair waits behind it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from transfer.channels.base import InPlace, Payload, ReceiveChannel, Reception, SendChannel
from transfer.channels.pair import BACKENDS, Meeting, Pair, join_store, new_meeting, open_store
from transfer.errors import EncoderLost, ProtocolError, TriptychError
from transfer.messages import Chunk, FetchReply, FetchRequest, Segment

_logger = logging.getLogger(__name__)
_IDLE_S = 60.0
_MAX_PAIRS = 256
_CLOSE_TIMEOUT_S = 1.0
_MAX_DECLINED_BYTES = 4 * 1024**3
"""Of one payload that is received to be dropped: what a client takes by default. A larger one ends its pair."""


class _PairThread:
    """Runs jobs on one end of a pair, in order, after meeting the other end; `is_over` once it takes no more.

    `last_tag` is that of the newest payload that the receiving end has a job for.
    """

    def __init__(self, meeting: Meeting, make: Callable[[], Pair]) -> None:
        self.meeting = meeting
        self.last_tag = 0
        self.is_over = threading.Event()
        self._stopping = threading.Event()
        self._make = make
        self._jobs: queue.SimpleQueue[Callable[[Pair | None], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="embedding-pair", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[Pair | None], None]) -> bool:
        """Have `job` called with the pair, or with None when there is none any more; False when it is over already."""
        with self._lock:
            if self.is_over.is_set():
                return False
            self._jobs.put(job)
            return True

    def stop(self) -> None:
        """Tear down after the job that runs now; those behind it find no pair. Returns at once."""
        self._stopping.set()
        self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, at most so long."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pair: Pair | None = None
        try:
            pair = self._make()
            while (job := self._jobs.get(timeout=_IDLE_S)) is not None:
                job(None if self._stopping.is_set() else pair)
        except queue.Empty:
            pass
        except (RuntimeError, OSError) as error:
            _logger.warning("the pair of %s is torn down: %s", self.meeting.host, error)
        finally:
            with self._lock:
                self.is_over.set()
            while not self._jobs.empty():
                if (job := self._jobs.get()) is not None:
                    job(None)
            if pair is not None:
                pair.close()


def _stop_all(pairs: Collection[_PairThread]) -> None:
    """Tear all down at once, waiting as long as for one: the client's other threads wait meanwhile."""
    for pair in pairs:
        pair.stop()
    deadline = time.monotonic() + _CLOSE_TIMEOUT_S
    for pair in pairs:
        pair.join(max(0.0, deadline - time.monotonic()))


class HcclSendChannel(SendChannel):
    """The encoder's end of all its pairs, one for each control connection that asked."""

    name: ClassVar[str] = "hccl"

    def __init__(self, host: str, device: str) -> None:
        """`host`: where prefill workers reach this process. `device`: kind of device, 'cpu', 'cuda' or 'npu'."""
        self._host, self._device, self._backend = host, torch.device(device), BACKENDS[device]
        self._pairs: dict[bytes, _PairThread] = {}
        self._tag = 0
        self._lock = threading.Lock()

    def store(self, payload: Payload) -> Payload:
        """The payload itself."""
        return payload

    def can_serve(self, request: FetchRequest, payload: Payload) -> bool:
        """Always: whether the peer's devices speak the same shows when the two meet."""
        return True

    def segments(self, payload: Payload) -> tuple[Segment, ...]:
        """Nothing without a pair: see `begin`."""
        raise NotImplementedError

    def begin(self, peer: bytes, payload: Payload) -> tuple[Segment, ...]:
        """Queue the payload on the peer's pair; the segment says where to meet and which number it has."""
        if not payload.num_rows:
            return ()
        with self._lock:
            self._tag += 1
            tag, data = self._tag, payload.buffer
            pair = self._pairs.get(peer)
            if pair is None or not pair.put(lambda end: _send(end, data, tag)):
                pair = self._start(peer)
                pair.put(lambda end: _send(end, data, tag))
        row_end = payload.row_start + payload.num_rows
        return (Segment(payload.row_start, row_end, payload.num_bytes, pair.meeting.to_region(), tag),)

    def chunks(self, fetch_id: int, payload: Payload) -> Iterator[tuple[Chunk, memoryview]]:
        """None on the control connection."""
        return iter(())

    def close(self) -> None:
        """Tear down every pair."""
        with self._lock:
            pairs, self._pairs = list(self._pairs.values()), {}
        _stop_all(pairs)

    def _start(self, peer: bytes) -> _PairThread:
        for other in [other for other, pair in self._pairs.items() if pair.is_over.is_set()]:
            del self._pairs[other]
        if len(self._pairs) >= _MAX_PAIRS:
            self._pairs.pop(next(iter(self._pairs)))  # its thread ends when it has been idle
        store, port = open_store(self._host)
        meeting = new_meeting(self._host, port, self._backend)
        self._pairs[peer] = _PairThread(meeting, lambda: Pair(meeting, 0, store, self._device))
        return self._pairs[peer]


def _send(end: Pair | None, data: memoryview, tag: int) -> None:
    if end is not None:
        end.send(data, tag)


class _PairReception(Reception):
    """Completed or failed by the pair's thread."""

    def __init__(self) -> None:
        self._complete = False
        self._failure: TriptychError | None = None

    @property
    def complete(self) -> bool:
        return self._complete

    @property
    def failure(self) -> TriptychError | None:
        return self._failure

    def accept(self, chunk: Chunk, data: memoryview) -> None:
        raise ProtocolError("the hccl channel has no chunks")

    def end(self, failure: TriptychError | None) -> None:
        self._complete, self._failure = failure is None, failure


@dataclass(frozen=True, slots=True)
class _Wanted:
    segment: Segment
    target: memoryview
    reception: _PairReception


class HcclReceiveChannel(ReceiveChannel):
    """The client's end of all its pairs."""

    name: ClassVar[str] = "hccl"
    per_connection: ClassVar[bool] = True

    def __init__(self, device: str) -> None:
        self._device, self._backend = torch.device(device), BACKENDS[device]
        self._pairs: dict[str, _PairThread] = {}

    def open(self, reply: FetchReply, destination: memoryview, row_bytes: int) -> Reception:
        """Queue the receive; `on_progress` is told when it has ended, well or not."""
        if not reply.segments:
            return InPlace()
        if len(reply.segments) != 1:
            raise ProtocolError("the hccl channel has one segment")
        reception, (segment,) = _PairReception(), reply.segments
        first_byte = segment.row_start * row_bytes
        wanted = _Wanted(segment, destination[first_byte : first_byte + segment.num_bytes], reception)
        pair = self._pair(segment.region)
        if pair is not None:
            pair.last_tag = max(pair.last_tag, segment.offset)
        if pair is None or not pair.put(lambda end: self._receive(end, wanted, reply.fetch_id)):
            reception.end(EncoderLost("the encoder's pair is of another kind of device, or was torn down"))
            self.on_progress(reply.fetch_id)
        return reception

    def decline(self, reply: FetchReply) -> None:
        """Queue the receive all the same: the encoder's end sends in order, and what follows would wait for it."""
        if len(reply.segments) != 1:
            return
        (segment,) = reply.segments
        if segment.region not in self._pairs and len(self._pairs) >= _MAX_PAIRS:
            return  # nobody has to wait for a pair that nothing is wanted of
        try:
            pair = self._pair(segment.region)
        except ProtocolError as error:
            _logger.warning("declined what cannot be received: %s", error)
            return
        # Tags grow: one that is not new was received before, and waiting for it again would break the pair.
        if pair is not None and segment.offset > pair.last_tag:
            pair.last_tag = segment.offset
            pair.put(lambda end: _drop(end, segment))

    def close(self) -> None:
        """Tear down every pair."""
        _stop_all(self._pairs.values())
        self._pairs.clear()

    def _pair(self, region: str) -> _PairThread | None:
        for other in [other for other, pair in self._pairs.items() if pair.is_over.is_set()]:
            del self._pairs[other]
        if region not in self._pairs:
            try:
                meeting = Meeting.from_region(region)
            except ValueError as error:
                raise ProtocolError(str(error)) from error
            if meeting.backend != self._backend:
                return None
            self._pairs[region] = _PairThread(meeting, lambda: Pair(meeting, 1, join_store(meeting), self._device))
        return self._pairs[region]

    def _receive(self, end: Pair | None, wanted: _Wanted, fetch_id: int) -> None:
        failure: TriptychError | None = EncoderLost("the pair was torn down")
        try:
            if end is not None:
                staged = end.receive(wanted.segment.num_bytes, wanted.segment.offset)
                np.copyto(np.frombuffer(wanted.target, np.uint8), staged.cpu().numpy())
                failure = None
        except RuntimeError as error:
            failure = EncoderLost(f"the pair failed: {error}")
            raise
        finally:
            wanted.reception.end(failure)
            self.on_progress(fetch_id)


def _drop(end: Pair | None, segment: Segment) -> None:
    """Receive into the memory that the pair has for it anyway."""
    if end is None:
        return
    if segment.num_bytes > _MAX_DECLINED_BYTES:
        raise RuntimeError(f"{segment.num_bytes} bytes are too many to receive for nobody")
    end.receive(segment.num_bytes, segment.offset)
