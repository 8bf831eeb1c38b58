"""The I/O thread of an embedding client: all links, all pending fetches, every wait with a deadline."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

import zmq

from transfer.channels.arena_reader import HeldBlock
from transfer.channels.base import ReceiveChannel
from transfer.channels.shm_channel import ShmReceiveChannel
from transfer.client_inbox import FetchCommand, Inbox, SendCommand
from transfer.codec import decode, encode
from transfer.doorbell import Doorbell
from transfer.errors import (
    Closed,
    DeadlineExceeded,
    EncoderLost,
    Incompatible,
    ProtocolError,
    TriptychError,
    VersionMismatch,
)
from transfer.link import Link
from transfer.link_table import LinkTable
from transfer.messages import Chunk, EmbeddingRef, FetchReply
from transfer.nearby import Allocate, Arrived, ArrivedFuture, Nearby
from transfer.pending import PendingFetches
from transfer.rate_limit import LimitedLog
from transfer.reception import Fetch

_logger = logging.getLogger(__name__)
_IDLE_POLL_S = 1.0


class ClientThread:
    """What no other thread calls runs in a thread of its own, and holds the lock whenever it does not wait."""

    def __init__(
        self,
        fingerprint: str,
        channels: Sequence[ReceiveChannel],
        links: LinkTable,
        nearby: Nearby | None,
    ) -> None:
        self._fingerprint = fingerprint
        self._channels = {channel.name: channel for channel in channels}
        self._inbox = Inbox()
        for channel in channels:
            channel.on_progress = self._inbox.note_progress
        self._nearby = nearby
        self._bell = None if nearby is None else Doorbell()
        self._links = links
        links.place = self._place
        self._fetches = PendingFetches()
        self._lock = threading.Lock()
        self._log = LimitedLog(_logger)
        self._thread = threading.Thread(target=self._run, name="embedding-client", daemon=True)

    def start(self) -> None:
        """Begin to take commands."""
        self._thread.start()

    def fetch(
        self, ref: EmbeddingRef, deadline: float, future: ArrivedFuture, allocate: Allocate, in_place: bool
    ) -> bool:
        """Begin a fetch; False when stopped."""
        lane = self._links.lane_of(ref.expected_bytes)
        command = FetchCommand(ref, lane, deadline, future, allocate, in_place)
        return self._begin_here(command) or self._inbox.put(command)

    def send(self, command: SendCommand) -> bool:
        """Have it sent; False when stopped."""
        return self._inbox.put(command)

    @property
    def num_pending(self) -> int:
        """Fetches submitted and not ended."""
        return self._inbox.num_open_fetches

    def stop(self, timeout_s: float) -> None:
        """End the thread; every pending fetch ends with Closed."""
        self._inbox.close()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _logger.error("embedding client thread did not stop within %s s", timeout_s)
            return
        self._inbox.give_back()
        if self._bell is not None:
            self._bell.close()

    def _run(self) -> None:
        self._links.poller.register(self._inbox.fileno(), zmq.POLLIN)
        if self._bell is not None:
            self._links.poller.register(self._bell.fileno(), zmq.POLLIN)
        try:
            while not self._inbox.closed:
                ready = self._links.poll(self._longest_wait_s())
                with self._lock:
                    self._look_around(ready)
            with self._lock:
                self._take_commands()
        except Exception:
            # The process edge: without this thread no fetch would ever end, so all of them end now.
            _logger.exception("embedding client thread failed")
        finally:
            self._inbox.close()
            with self._lock:
                self._shut_down()

    def _look_around(self, ready: Collection[object]) -> None:
        if self._bell is not None and self._bell.fileno() in ready:
            self._bell.clear()
            self._look_nearby()
        self._inbox.clear_wakeup()
        self._take_commands()
        for link in self._links:
            if link.is_ready(ready):
                self._receive(link, link.max_batch)
            self._look_after(link, ready)
        for fetch in self._fetches.overdue():
            self._finish(fetch, DeadlineExceeded("the embedding did not arrive in time"))

    def _shut_down(self) -> None:
        for fetch in self._fetches:
            self._finish(fetch, Closed("the embedding client was closed"))
        while (command := self._inbox.take()) is not None:
            if isinstance(command, FetchCommand):
                self._resolve(command.future, Closed("the embedding client was closed"))
        for channel in self._channels.values():
            channel.close()
        self._links.close()

    def _longest_wait_s(self) -> float:
        next_deadline_s = self._fetches.next_deadline_s()
        return _IDLE_POLL_S if next_deadline_s is None else min(_IDLE_POLL_S, next_deadline_s)

    def _take_commands(self) -> None:
        while (command := self._inbox.take()) is not None:
            if isinstance(command, FetchCommand):
                self._begin(command)
            elif isinstance(command, SendCommand):
                self._send(command)
            else:
                self._progress(command.fetch_id)

    def _begin_here(self, command: FetchCommand) -> bool:
        """Ask from the thread of the caller, which need not wait for this one to wake; False where that cannot be."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._links.may_send(command.ref.endpoints, command.lane) or not self._inbox.note_fetch():
                return False
            self._begin(command)
        finally:
            self._lock.release()
        self._inbox.wake()  # for the deadline of this fetch
        return True

    def _begin(self, command: FetchCommand) -> None:
        timeout_s = command.deadline - time.monotonic()
        if timeout_s <= 0:
            self._resolve(command.future, DeadlineExceeded("no time left to fetch"))
            return
        fetch = self._fetches.add(command)
        channels = tuple(name for name in self._channels if name not in command.without)
        bell = "" if self._bell is None else self._bell.name
        frame = encode(fetch.request(self._fingerprint, channels, timeout_s, bell))
        for endpoint in command.ref.endpoints:
            try:
                link = self._links.open(endpoint, fetch.lane)
                link.send(frame)
                link.fetch_ids.add(fetch.fetch_id)
            except (zmq.ZMQError, OSError) as error:
                self._finish(fetch, EncoderLost(f"encoder at {endpoint}: {error}"))
                return

    def _send(self, command: SendCommand) -> None:
        for endpoint in command.endpoints:
            try:
                self._links.open(endpoint).send(encode(command.message))
            except zmq.ZMQError as error:
                self._log.warning(f"{command.message} to {endpoint} not sent: {error}")

    def _receive(self, link: Link, max_messages: int | None) -> None:
        num_messages = 0
        while max_messages is None or num_messages < max_messages:
            frames = link.receive()
            if frames is None:
                return
            num_messages += 1
            try:
                self._handle(link.endpoint, frames)
            except VersionMismatch as error:
                self._drop(link, Incompatible(f"encoder at {link.endpoint}: {error}"))
                return
            except ProtocolError as error:
                self._log.warning(f"dropped a malformed message from {link.endpoint}: {error}")

    def _place(self, endpoint: str, first: memoryview, num_bytes: int) -> tuple[int, memoryview] | None:
        """Where a data frame belongs whose header `first` is; what is wrong with it is found once it is whole."""
        try:
            chunk = decode(first, Chunk)
        except ProtocolError:
            return None
        fetch = self._fetches.get(chunk.fetch_id)
        memory = None if fetch is None else fetch.place(endpoint, chunk, num_bytes)
        return None if memory is None else (chunk.fetch_id, memory)

    def _handle(self, endpoint: str, frames: Sequence[memoryview]) -> None:
        message = decode(frames[0], FetchReply, Chunk)
        if not (2 if isinstance(message, Chunk) else 1) <= len(frames) <= 2:
            raise ProtocolError(f"{len(frames)} frames for a {type(message).__name__}")
        fetch = self._fetches.get(message.fetch_id)
        if fetch is None:
            return  # ended here before the answer came; nobody waits for it
        self._settle(fetch, lambda: self._take(fetch, endpoint, message, frames))

    def _take(self, fetch: Fetch, endpoint: str, message: FetchReply | Chunk, frames: Sequence[memoryview]) -> bool:
        if isinstance(message, Chunk):
            return fetch.take_chunk(endpoint, message, frames[1])
        taken = fetch.take_reply(endpoint, message, self._channels)
        if taken and self._nearby is not None and message.channel == ShmReceiveChannel.name:
            self._nearby.learn(endpoint, message)
        if taken and len(frames) > 1:
            fetch.take_first_chunk(endpoint, frames[1])
        return taken

    def _settle(self, fetch: Fetch, step: Callable[[], bool]) -> None:
        """Finish the fetch if `step` has brought its last part, or raises."""
        try:
            arrived = fetch.result() if step() else None
        except TriptychError as error:
            self._finish(fetch, error)
            return
        if arrived is not None:
            self._finish(fetch, arrived)

    def _progress(self, fetch_id: int) -> None:
        """A channel's own thread ended a reception."""
        fetch = self._fetches.get(fetch_id)
        if fetch is not None:
            self._settle(fetch, lambda: not self._asked_others(fetch) and fetch.progress())

    def _asked_others(self, fetch: Fetch) -> bool:
        """After a failure, ask again on the channels that have not failed; raises the failure when there is none."""
        failures = fetch.failures()
        if not failures:
            return False
        without = fetch.without | failures.keys()
        if without >= self._channels.keys():
            raise next(iter(failures.values()))
        self._log.warning(f"fetch of {fetch.ref.transfer_id}: trying other channels after {failures}")
        self._forget(fetch)
        lane = self._links.lane_of(fetch.ref.expected_bytes)
        self._begin(FetchCommand(fetch.ref, lane, fetch.deadline, fetch.future, fetch.memory, fetch.in_place, without))
        return True

    def _look_nearby(self) -> None:
        assert self._nearby is not None
        for fetch in self._fetches:
            outcome = None if fetch.begun else self._nearby.get(fetch.ref, fetch.allocate, fetch.in_place)
            if outcome is not None:
                self._finish(fetch, outcome)

    def _look_after(self, link: Link, ready: Collection[object]) -> None:
        reason = link.lost_reason(ready)
        if reason is not None:
            self._receive(link, None)  # what arrived before the peer went still counts
            self._drop(link, EncoderLost(f"encoder at {link.endpoint} {reason}"))

    def _drop(self, link: Link, error: TriptychError) -> None:
        if not self._links.drop(link):
            return
        for fetch in [self._fetches.get(fetch_id) for fetch_id in link.fetch_ids]:
            if fetch is not None:
                self._finish(fetch, error)

    def _finish(self, fetch: Fetch, outcome: Arrived | TriptychError) -> None:
        if self._fetches.get(fetch.fetch_id) is None:
            return
        self._forget(fetch)
        self._resolve(fetch.future, outcome)

    def _forget(self, fetch: Fetch) -> None:
        self._fetches.remove(fetch)
        for endpoint in fetch.ref.endpoints:
            self._links.forget_fetch(endpoint, fetch.lane, fetch.fetch_id)

    def _resolve(self, future: ArrivedFuture, outcome: Arrived | TriptychError) -> None:
        self._inbox.fetch_ended()
        if not future.set_running_or_notify_cancel():
            if isinstance(outcome, HeldBlock):
                outcome.close()
            return
        if isinstance(outcome, TriptychError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
