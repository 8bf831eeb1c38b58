"""The fetches of an embedding client that have not ended, by their number and by their deadline."""

import heapq
import time
from collections import OrderedDict
from collections.abc import Iterator

from transfer.client_inbox import FetchCommand
from transfer.reception import Fetch

_MAX_ENDED = 4096


class PendingFetches:
    """Not thread-safe: the owner locks."""

    def __init__(self) -> None:
        self._fetches: dict[int, Fetch] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._ended: OrderedDict[int, int] = OrderedDict()
        self._next_id = 1

    def __iter__(self) -> Iterator[Fetch]:
        return iter(list(self._fetches.values()))

    def add(self, command: FetchCommand) -> Fetch:
        """A new one, for what was asked."""
        fetch_id, self._next_id = self._next_id, self._next_id + 1
        fetch = Fetch(fetch_id, command.ref, command.deadline, command.future, command.allocate, command.in_place)
        fetch.without = command.without
        fetch.lane = command.lane
        self._fetches[fetch_id] = fetch
        heapq.heappush(self._deadlines, (command.deadline, fetch_id))
        return fetch

    def get(self, fetch_id: int) -> Fetch | None:
        """The one of that number, if it has not ended."""
        return self._fetches.get(fetch_id)

    def remove(self, fetch: Fetch) -> None:
        """It has ended."""
        del self._fetches[fetch.fetch_id]
        self._ended[fetch.fetch_id] = fetch.ref.expected_bytes
        if len(self._ended) > _MAX_ENDED:
            self._ended.popitem(last=False)

    def bytes_of_ended(self, fetch_id: int) -> int:
        """How much may still come for one that has ended; 0 where there was none, or long ago."""
        return self._ended.get(fetch_id, 0)

    def next_deadline_s(self) -> float | None:
        """In how many seconds `overdue` may next find one."""
        return self._deadlines[0][0] - time.monotonic() if self._deadlines else None

    def overdue(self) -> list[Fetch]:
        """Those whose time is over."""
        found, now = [], time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            fetch = self._fetches.get(heapq.heappop(self._deadlines)[1])
            if fetch is not None:
                found.append(fetch)
        return found
