"""What an embedding client asks of encoders and what they answer: every pending fetch, from its request to its end."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import zmq

from transfer.channels.arena_reader import HeldBlock
from transfer.channels.base import ReceiveChannel
from transfer.channels.shm_channel import ShmReceiveChannel
from transfer.client_inbox import FetchCommand, SendCommand
from transfer.codec import decode, encode
from transfer.errors import (
    Closed,
    DeadlineExceeded,
    EncoderLost,
    Incompatible,
    ProtocolError,
    TriptychError,
    VersionMismatch,
    unexpected,
)
from transfer.link import Link
from transfer.link_table import LinkTable
from transfer.messages import Chunk, FetchReply, Status
from transfer.nearby import Arrived, Nearby
from transfer.pending import PendingFetches
from transfer.rate_limit import LimitedLog
from transfer.reception import Fetch

_logger = logging.getLogger(__name__)
_MOST_OF_THE_LOST = 4096
"""Messages that are still taken from a lost link; a socket's buffers hold fewer."""


class Exchange:
    """Not thread-safe: the owner locks. Nothing raises: what goes wrong with one fetch or link ends that one alone."""

    def __init__(
        self,
        fingerprint: str,
        channels: Sequence[ReceiveChannel],
        links: LinkTable,
        nearby: Nearby | None,
        bell: str,
        ended: Callable[[], None],
    ) -> None:
        """Args: `bell`: where encoders ring (see `doorbell`), or "". `ended` is told of the end of every fetch."""
        self._fingerprint = fingerprint
        self._channels = {channel.name: channel for channel in channels}
        self._links = links
        links.place = self._place
        self._nearby = nearby
        self._bell = bell
        self._ended = ended
        self._fetches = PendingFetches()
        self._log = LimitedLog(_logger)

    def begin(self, command: FetchCommand) -> None:
        """Ask every encoder that has a part of it."""
        timeout_s = command.deadline - time.monotonic()
        if timeout_s <= 0:
            self._resolve(command, DeadlineExceeded("no time left to fetch"))
            return
        fetch = self._fetches.add(command)
        self._settle(fetch, lambda: self._ask(fetch, timeout_s))

    def send(self, command: SendCommand) -> None:
        """Send it, or log why that cannot be: the lease's end is the net."""
        for endpoint in command.endpoints:
            try:
                self._links.open(endpoint).send(encode(command.message))
            except Exception as error:
                self._log.warning(f"{command.message} to {endpoint} not sent: {error}")

    def progress(self, fetch_id: int) -> None:
        """A channel's own thread ended a reception."""
        fetch = self._fetches.get(fetch_id)
        if fetch is not None:
            self._settle(fetch, lambda: self._progress(fetch))

    def serve_links(self, ready: Collection[object]) -> None:
        """Take what has come, and drop the links that are lost. `ready`: what the poller found."""
        for link in self._links:
            try:
                if not link.is_ready(ready) or self._receive(link, link.max_batch):
                    self._look_after(link, ready)
            except Exception as error:
                _logger.exception("the link to %s failed", link.endpoint)
                self._drop(link, EncoderLost(f"encoder at {link.endpoint}: {type(error).__name__}: {error}"))

    def look_nearby(self) -> None:
        """An encoder of this host rang: take what is there now."""
        assert self._nearby is not None
        for fetch in self._fetches:
            if not fetch.begun:
                self._settle(fetch, partial(self._nearby.get, fetch.ref, fetch.allocate, fetch.in_place))

    def end_overdue(self) -> None:
        """End the fetches whose time is over."""
        for fetch in self._fetches.overdue():
            self._finish(fetch, DeadlineExceeded("the embedding did not arrive in time"))

    def next_deadline_s(self) -> float | None:
        """In how many seconds there may next be one for `end_overdue`."""
        return self._fetches.next_deadline_s()

    def close(self, not_begun: Iterable[FetchCommand]) -> None:
        """End every fetch, those that were not begun too, and give channels and links back."""
        for fetch in self._fetches:
            self._finish(fetch, Closed("the embedding client was closed"))
        for command in not_begun:
            self._resolve(command, Closed("the embedding client was closed"))
        for channel in self._channels.values():
            channel.close()
        self._links.close()

    def _ask(self, fetch: Fetch, timeout_s: float) -> None:
        channels = tuple(name for name in self._channels if name not in fetch.without)
        frame = encode(fetch.request(self._fingerprint, channels, timeout_s, self._bell))
        for endpoint in fetch.ref.endpoints:
            try:
                link = self._links.open(endpoint, fetch.lane)
                link.send(frame)
            except (zmq.ZMQError, OSError) as error:
                raise EncoderLost(f"encoder at {endpoint}: {error}") from error
            link.fetch_ids.add(fetch.fetch_id)

    def _receive(self, link: Link, max_messages: int) -> bool:
        """Take up to so many messages; False when the link was dropped for one of them."""
        for _ in range(max_messages):
            frames = link.receive()
            if frames is None:
                return True
            try:
                self._handle(link, frames)
            except VersionMismatch as error:
                self._drop(link, Incompatible(f"encoder at {link.endpoint}: {error}"))
                return False
            except ProtocolError as error:
                self._log.warning(f"dropped a malformed message from {link.endpoint}: {error}")
        return True

    def _place(self, endpoint: str, lane: int, first: memoryview, num_bytes: int) -> tuple[int, memoryview] | None:
        """Where a data frame belongs whose header `first` is; what is wrong with it is found once it is whole."""
        try:
            chunk = decode(first, Chunk)
        except ProtocolError:
            return None
        fetch = self._fetches.get(chunk.fetch_id)
        # Another lane's link is not told when the fetch ends, and would go on writing.
        if fetch is None or fetch.lane != lane:
            return None
        memory = fetch.place(endpoint, chunk, num_bytes)
        return None if memory is None else (chunk.fetch_id, memory)

    def _handle(self, link: Link, frames: Sequence[memoryview]) -> None:
        message = decode(frames[0], FetchReply, Chunk)
        if not (2 if isinstance(message, Chunk) else 1) <= len(frames) <= 2:
            raise ProtocolError(f"{len(frames)} frames for a {type(message).__name__}")
        fetch = self._fetches.get(message.fetch_id) if message.fetch_id in link.fetch_ids else None
        if fetch is None:  # ended here before the answer came; nobody waits for it
            if isinstance(message, FetchReply):
                self._decline(message, self._fetches.bytes_of_ended(message.fetch_id))
        elif isinstance(message, Chunk):
            self._settle(fetch, lambda: self._take_chunk(fetch, link.endpoint, message, frames[1]))
        else:
            self._settle(fetch, lambda: self._take_reply(fetch, link.endpoint, message, *frames[1:]))

    def _take_chunk(self, fetch: Fetch, endpoint: str, chunk: Chunk, data: memoryview) -> Arrived | None:
        return fetch.result() if fetch.take_chunk(endpoint, chunk, data) else None

    def _take_reply(
        self, fetch: Fetch, endpoint: str, reply: FetchReply, first: memoryview | None = None
    ) -> Arrived | None:
        taken = False
        try:
            taken = fetch.take_reply(endpoint, reply, self._channels)
        finally:
            if not taken:
                self._decline(reply, fetch.ref.expected_bytes)
        if not taken:
            return None
        if self._nearby is not None and reply.channel == ShmReceiveChannel.name:
            self._nearby.learn(endpoint, reply)
        if first is not None:
            fetch.take_first_chunk(endpoint, first)
        return fetch.result()

    def _decline(self, reply: FetchReply, most_bytes: int) -> None:
        """What the encoder sends for this reply is not wanted, but those behind it may be."""
        channel = self._channels.get(reply.channel)
        is_sent = reply.status is Status.OK and sum(segment.num_bytes for segment in reply.segments) <= most_bytes
        if channel is not None and is_sent:
            channel.decline(reply)

    def _progress(self, fetch: Fetch) -> Arrived | None:
        return fetch.result() if not self._asked_others(fetch) and fetch.progress() else None

    def _settle(self, fetch: Fetch, step: Callable[[], Arrived | TriptychError | None]) -> None:
        """Finish the fetch if `step` gives its outcome, or raises it."""
        try:
            outcome = step()
        except Exception as error:
            outcome = unexpected(error)
        if outcome is not None:
            self._finish(fetch, outcome)

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
        self.begin(FetchCommand(fetch.ref, lane, fetch.deadline, fetch.future, fetch.memory, fetch.in_place, without))
        return True

    def _look_after(self, link: Link, ready: Collection[object]) -> None:
        reason = link.lost_reason(ready)
        if reason is not None and self._receive(link, _MOST_OF_THE_LOST):  # what came before it went still counts
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
        if isinstance(outcome, TriptychError):
            fetch.give_back()
        self._resolve(fetch, outcome)

    def _forget(self, fetch: Fetch) -> None:
        self._fetches.remove(fetch)
        for endpoint in fetch.ref.endpoints:
            self._links.forget_fetch(endpoint, fetch.lane, fetch.fetch_id)

    def _resolve(self, asked: Fetch | FetchCommand, outcome: Arrived | TriptychError) -> None:
        self._ended()
        if not asked.future.set_running_or_notify_cancel():
            if isinstance(outcome, HeldBlock):
                outcome.close()
        elif isinstance(outcome, TriptychError):
            asked.future.set_exception(outcome)
        else:
            asked.future.set_result(outcome)
