"""The life of every announced embedding at the encoder, as a pure state machine with an injected clock.

                 fulfil            release
    ANNOUNCED ───────────► READY ───────────► RELEASED
        │  │                 │                    ▲
        │  │ fail            └──── sweep ───► EXPIRED
        │  └─────► FAILED ──── release or sweep ──┘ (RELEASED or EXPIRED)
        └───────── release or sweep ──► RELEASED or EXPIRED

A lease ends exactly once. It lasts `wait_s` from its announcement, then `lease_s` from the moment it is ready, and at
least `lease_s` from each renewal.
Ended leases leave a tombstone, of which the youngest are kept, so that a late fetch learns "expired", not "unknown".
One payload may be held by several leases; the table lets go of it when the last of them ends.
Not thread-safe: the owner locks.
"""

import enum
import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from transfer.channels.base import Payload
from transfer.dtypes import DTYPE_BYTES
from transfer.errors import Busy, TriptychError
from transfer.promises import Promise, Promises


class LeaseState(enum.Enum):
    """Where a lease is in its life; the last two are ends."""

    ANNOUNCED = "announced"
    READY = "ready"
    FAILED = "failed"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(slots=True)
class Lease:
    """One announced embedding [num_tokens, width]; `payload` when READY, `error` when FAILED.

    `looked_at` is when the table next looks whether its time is over: never after `deadline`. `memory` is equal for
    leases whose payloads are the same bytes.
    """

    transfer_id: str
    item_key: str
    num_tokens: int
    width: int
    dtype: str
    lease_s: float
    deadline: float
    promise: Promise
    looked_at: float
    state: LeaseState = LeaseState.ANNOUNCED
    payload: Payload | None = None
    error: TriptychError | None = None
    memory: tuple[str, int, int] | None = None


@dataclass(slots=True)
class _Hold:
    payload: Payload
    num_leases: int


def _nothing(transfer_id: str) -> None:
    pass


@dataclass(slots=True)
class LeaseTable:
    """All live leases of one server.

    `clock` gives seconds, never going back. `on_end` is told the id of each lease that ends. `max_bytes` bounds what is
    promised to holders that come new; those that have a lease already get what they still need, since two that wait for
    each other's would wait for ever.
    """

    clock: Callable[[], float]
    max_leases: int = 16_384
    max_tombstones: int = 65_536
    max_bytes: int | None = None
    on_end: Callable[[str], None] = _nothing
    num_released: int = 0
    num_expired: int = 0
    _leases: dict[str, Lease] = field(default_factory=dict)
    _tombstones: OrderedDict[str, LeaseState] = field(default_factory=OrderedDict)
    _holds: dict[tuple[str, int, int], _Hold] = field(default_factory=dict)
    _promises: Promises = field(default_factory=Promises)
    _deadlines: list[tuple[float, str]] = field(default_factory=list)

    def announce(
        self,
        transfer_id: str,
        item_key: str,
        num_tokens: int,
        width: int,
        dtype: str,
        lease_s: float,
        wait_s: float | None = None,
        holder: str = "",
    ) -> Lease:
        """Start a lease of `holder`, whoever that is; `wait_s` is `lease_s` if absent.

        Raises ValueError when the id was used before, Busy when the table is full or the promised bytes are too many.
        """
        if self.state_of(transfer_id) is not None:
            raise ValueError(f"transfer id {transfer_id} was announced before")
        if len(self._leases) >= self.max_leases:
            raise Busy(f"{self.max_leases} leases are held")
        deadline = self.clock() + (lease_s if wait_s is None else wait_s)
        promise = Promise(item_key, num_tokens * width * DTYPE_BYTES[dtype], holder)
        if self.max_bytes is not None and not self._promises.fits(promise, self.max_bytes):
            raise Busy(f"{self._promises.num_bytes} bytes of embeddings are promised to others")
        self._promises.add(promise)
        lease = Lease(transfer_id, item_key, num_tokens, width, dtype, lease_s, deadline, promise, deadline)
        self._leases[transfer_id] = lease
        self._schedule(lease)
        return lease

    def fulfil(self, transfer_id: str, payload: Payload) -> bool:
        """ANNOUNCED to READY; False, holding nothing, when the lease has ended. ValueError when not announced."""
        lease = self._pending(transfer_id)
        if lease is None:
            return False
        memory = _memory_of(payload)
        hold = self._holds.setdefault(memory, _Hold(payload, 0))
        hold.num_leases += 1
        lease.state, lease.payload, lease.memory = LeaseState.READY, payload, memory
        self._extend(lease)
        return True

    def fail(self, transfer_id: str, error: TriptychError) -> bool:
        """ANNOUNCED to FAILED; False when the lease has ended. ValueError when not announced."""
        lease = self._pending(transfer_id)
        if lease is None:
            return False
        lease.state, lease.error = LeaseState.FAILED, error
        self._extend(lease)
        return True

    def release(self, transfer_id: str) -> bool:
        """End a lease in any live state; False when it is unknown or has ended before (idempotent)."""
        lease = self._leases.get(transfer_id)
        if lease is None:
            return False
        self._end(lease, LeaseState.RELEASED)
        self.num_released += 1
        return True

    def renew(self, transfer_id: str) -> bool:
        """Start a live lease's time again, in any live state; False when it is unknown or has ended."""
        lease = self._leases.get(transfer_id)
        if lease is None:
            return False
        if lease.deadline < self.clock() + lease.lease_s:
            self._extend(lease)
        return True

    def sweep(self) -> list[str]:
        """End the leases whose time is over and return their ids."""
        now, expired = self.clock(), []
        while self._deadlines and self._deadlines[0][0] <= now:
            looked_at, transfer_id = heapq.heappop(self._deadlines)
            lease = self._leases.get(transfer_id)
            if lease is None or lease.looked_at != looked_at:
                continue
            if lease.deadline > now:
                self._schedule(lease)
                continue
            self._end(lease, LeaseState.EXPIRED)
            self.num_expired += 1
            expired.append(transfer_id)
        return expired

    def get(self, transfer_id: str) -> Lease | None:
        """The live lease, or None."""
        return self._leases.get(transfer_id)

    def state_of(self, transfer_id: str) -> LeaseState | None:
        """State of a live or remembered lease; None when it was never announced or is long forgotten."""
        lease = self._leases.get(transfer_id)
        return self._tombstones.get(transfer_id) if lease is None else lease.state

    def clear(self) -> None:
        """Release every live lease."""
        for transfer_id in list(self._leases):
            self.release(transfer_id)

    def next_deadline(self) -> float | None:
        """When `sweep` may next have work, on the table's clock."""
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def num_leases(self) -> int:
        """Live leases."""
        return len(self._leases)

    @property
    def num_ready(self) -> int:
        """Live leases that hold a payload."""
        return sum(hold.num_leases for hold in self._holds.values())

    @property
    def bytes_promised(self) -> int:
        """Bytes of the embeddings of all live leases, made or not; those of one item counted once."""
        return self._promises.num_bytes

    @property
    def bytes_held(self) -> int:
        """Bytes of all held payloads, each counted once."""
        return sum(hold.payload.num_bytes for hold in self._holds.values())

    def check_integrity(self) -> None:
        """Assert that the books agree with each other."""
        ready = [lease for lease in self._leases.values() if lease.state is LeaseState.READY]
        assert self.num_ready == len(ready)
        assert {lease.memory for lease in ready} == self._holds.keys()
        assert all(hold.num_leases > 0 for hold in self._holds.values())
        assert not self._leases.keys() & self._tombstones.keys()
        assert len(self._tombstones) <= self.max_tombstones
        assert len(self._leases) <= self.max_leases
        self._promises.check_integrity(lease.promise for lease in self._leases.values())
        looks, num_looks = set(self._deadlines), Counter(transfer_id for _, transfer_id in self._deadlines)
        for lease in self._leases.values():
            assert lease.state not in (LeaseState.RELEASED, LeaseState.EXPIRED)
            assert (lease.payload is not None) == (lease.state is LeaseState.READY)
            assert (lease.error is not None) == (lease.state is LeaseState.FAILED)
            assert lease.looked_at <= lease.deadline
            assert (lease.looked_at, lease.transfer_id) in looks
            assert num_looks[lease.transfer_id] <= 2  # of which one is from before it was ready

    def _pending(self, transfer_id: str) -> Lease | None:
        lease = self._leases.get(transfer_id)
        if lease is None and transfer_id in self._tombstones:
            return None
        if lease is None or lease.state is not LeaseState.ANNOUNCED:
            raise ValueError(f"transfer {transfer_id} is not announced but {self.state_of(transfer_id)}")
        return lease

    def _extend(self, lease: Lease) -> None:
        lease.deadline = self.clock() + lease.lease_s
        if lease.deadline < lease.looked_at:  # otherwise the later time is found then, however often it was renewed
            self._schedule(lease)

    def _schedule(self, lease: Lease) -> None:
        lease.looked_at = lease.deadline
        heapq.heappush(self._deadlines, (lease.deadline, lease.transfer_id))

    def _end(self, lease: Lease, state: LeaseState) -> None:
        del self._leases[lease.transfer_id]
        self._promises.remove(lease.promise)
        self._tombstones[lease.transfer_id] = state
        if len(self._tombstones) > self.max_tombstones:
            self._tombstones.popitem(last=False)
        self.on_end(lease.transfer_id)
        if lease.memory is None:
            return
        hold = self._holds[lease.memory]
        hold.num_leases -= 1
        if hold.num_leases == 0:
            del self._holds[lease.memory]


def _memory_of(payload: Payload) -> tuple[str, int, int]:
    """Equal for payloads of the same memory: that of one block, or at one address for as long as it is held."""
    if payload.block_id:
        return payload.block_id, 0, 0
    if not payload.num_bytes:
        return "", 0, 0
    address: int = np.frombuffer(payload.buffer, np.uint8).__array_interface__["data"][0]
    return "", address, payload.num_bytes
