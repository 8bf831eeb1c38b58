"""Fetches that wait at the encoder for an embedding that does not exist yet; pure, bounded, not thread-safe."""

import heapq
from dataclasses import dataclass, field

from transfer.messages import FetchRequest


@dataclass(frozen=True, slots=True)
class Parked:
    """One waiting fetch: who to answer (`peer`, the ROUTER identity) and until when, on the caller's clock."""

    peer: bytes
    request: FetchRequest
    deadline: float


@dataclass(slots=True)
class ParkingLot:
    """At most `max_parked` waiting fetches, found by transfer or by deadline."""

    max_parked: int
    _by_transfer: dict[str, dict[int, Parked]] = field(default_factory=dict)
    _deadlines: list[tuple[float, int, str]] = field(default_factory=list)
    _next_slot: int = 0
    _num_parked: int = 0

    @property
    def num_parked(self) -> int:
        """Fetches waiting now."""
        return self._num_parked

    def park(self, parked: Parked) -> bool:
        """Let it wait; False when the lot is full."""
        if self._num_parked >= self.max_parked:
            return False
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        transfer_id = parked.request.transfer_id
        self._by_transfer.setdefault(transfer_id, {})[slot] = parked
        heapq.heappush(self._deadlines, (parked.deadline, slot, transfer_id))
        self._num_parked += 1
        return True

    def take(self, transfer_id: str) -> list[Parked]:
        """Remove and return all that wait for a transfer, oldest first."""
        taken = list(self._by_transfer.pop(transfer_id, {}).values())
        self._num_parked -= len(taken)
        return taken

    def take_overdue(self, now: float) -> list[Parked]:
        """Remove and return those whose deadline is not after `now`."""
        overdue = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, slot, transfer_id = heapq.heappop(self._deadlines)
            waiting = self._by_transfer.get(transfer_id, {})
            parked = waiting.pop(slot, None)
            if parked is not None:
                overdue.append(parked)
                if not waiting:
                    del self._by_transfer[transfer_id]
        self._num_parked -= len(overdue)
        return overdue

    def take_all(self) -> list[Parked]:
        """Empty the lot."""
        taken = [parked for waiting in self._by_transfer.values() for parked in waiting.values()]
        self._by_transfer.clear()
        self._deadlines.clear()
        self._num_parked = 0
        return taken

    def next_deadline(self) -> float | None:
        """When `take_overdue` may next have work."""
        return self._deadlines[0][0] if self._deadlines else None
