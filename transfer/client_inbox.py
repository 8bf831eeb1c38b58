"""What other threads ask of an embedding client's thread, and how many of their fetches have not ended."""

import queue
import threading
from dataclasses import dataclass
from typing import TypeAlias

from transfer.messages import EmbeddingRef, Release, Renew
from transfer.nearby import Allocate, ArrivedFuture
from transfer.wakeup import WakeUp


@dataclass(frozen=True, slots=True)
class FetchCommand:
    """Fetch `ref` into `future` by `deadline` (monotonic seconds), in its `lane`, on other channels than `without`."""

    ref: EmbeddingRef
    lane: int
    deadline: float
    future: ArrivedFuture
    allocate: Allocate
    in_place: bool
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Send a message that is not answered to every endpoint."""

    message: Release | Renew
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A channel's own thread has ended a reception of this fetch."""

    fetch_id: int


Command: TypeAlias = FetchCommand | SendCommand | Progress


class Inbox:
    """Thread-safe. Once closed it takes nothing more; what is in it can still be taken out."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wakeup = WakeUp()
        self._closed = False
        self._num_open = 0

    def fileno(self) -> int:
        """Readable when there may be something to take, or the inbox was closed."""
        return self._wakeup.fileno()

    def put(self, command: Command) -> bool:
        """False when closed."""
        with self._lock:
            if self._closed:
                return False
            self._num_open += isinstance(command, FetchCommand)
            self._commands.put(command)
        self._wakeup.ring()
        return True

    def note_fetch(self) -> bool:
        """Count a fetch that was begun without being put; False when closed."""
        with self._lock:
            self._num_open += not self._closed
            return not self._closed

    def wake(self) -> None:
        """Make `fileno` readable."""
        self._wakeup.ring()

    def note_progress(self, fetch_id: int) -> None:
        """Put a `Progress`; nothing when closed."""
        self.put(Progress(fetch_id))

    def take(self) -> Command | None:
        """The next command, or None when there is none."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def clear_wakeup(self) -> None:
        """Make `fileno` unreadable until something comes."""
        self._wakeup.clear()

    def fetch_ended(self) -> None:
        """One of the fetches that were put has its outcome."""
        with self._lock:
            self._num_open -= 1

    @property
    def num_open_fetches(self) -> int:
        """Fetches put that have not ended."""
        with self._lock:
            return self._num_open

    @property
    def closed(self) -> bool:
        """Whether nothing more comes in."""
        return self._closed

    def close(self) -> None:
        """Take nothing more, and wake the reader."""
        with self._lock:
            self._closed = True
        self._wakeup.ring()

    def give_back(self) -> None:
        """Give the descriptor back; only once nothing polls it any more."""
        self._wakeup.close()
