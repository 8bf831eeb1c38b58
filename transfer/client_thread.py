"""The I/O thread of an embedding client: waits for encoders, callers and deadlines, and has the exchange go on."""

import logging
import threading
from collections.abc import Collection, Sequence

import zmq

from transfer.channels.base import ReceiveChannel
from transfer.client_inbox import FetchCommand, Inbox, SendCommand
from transfer.doorbell import Doorbell
from transfer.exchange import Exchange
from transfer.link_table import LinkTable
from transfer.messages import EmbeddingRef
from transfer.nearby import Allocate, ArrivedFuture, Nearby

_logger = logging.getLogger(__name__)
_IDLE_POLL_S = 1.0


class ClientThread:
    """Commands come in from any thread; the exchange and the links belong to whoever holds the lock.

    This thread holds it whenever it does not wait. While it waits it reads the links and the next deadline without it:
    a caller that begins a fetch meanwhile neither adds nor drops links, and wakes it for the deadline.
    """

    def __init__(
        self,
        fingerprint: str,
        channels: Sequence[ReceiveChannel],
        links: LinkTable,
        nearby: Nearby | None,
    ) -> None:
        self._inbox = Inbox()
        for channel in channels:
            channel.on_progress = self._inbox.note_progress
        self._bell = None if nearby is None else Doorbell()
        bell = "" if self._bell is None else self._bell.name
        self._links = links
        self._exchange = Exchange(fingerprint, channels, links, nearby, bell, self._inbox.fetch_ended)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="embedding-client", daemon=True)

    def start(self) -> None:
        """Begin to take commands."""
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether commands are taken."""
        return self._thread.is_alive() and not self._inbox.closed

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
                self._exchange.close(self._not_begun())

    def _look_around(self, ready: Collection[object]) -> None:
        if self._bell is not None and self._bell.fileno() in ready:
            self._bell.clear()
            self._exchange.look_nearby()
        self._inbox.clear_wakeup()
        self._take_commands()
        self._exchange.serve_links(ready)
        self._exchange.end_overdue()

    def _longest_wait_s(self) -> float:
        next_deadline_s = self._exchange.next_deadline_s()
        return _IDLE_POLL_S if next_deadline_s is None else min(_IDLE_POLL_S, next_deadline_s)

    def _take_commands(self) -> None:
        while (command := self._inbox.take()) is not None:
            if isinstance(command, FetchCommand):
                self._exchange.begin(command)
            elif isinstance(command, SendCommand):
                self._exchange.send(command)
            else:
                self._exchange.progress(command.fetch_id)

    def _not_begun(self) -> list[FetchCommand]:
        """The fetches that came in and found the thread at its end."""
        commands = []
        while (command := self._inbox.take()) is not None:
            if isinstance(command, FetchCommand):
                commands.append(command)
        return commands

    def _begin_here(self, command: FetchCommand) -> bool:
        """Ask from the thread of the caller, which need not wait for this one to wake; False where that cannot be."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._links.may_send(command.ref.endpoints, command.lane) or not self._inbox.note_fetch():
                return False
            self._exchange.begin(command)
        finally:
            self._lock.release()
        self._inbox.wake()  # for the deadline of this fetch
        return True
