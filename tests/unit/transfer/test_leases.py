"""Guards: a lease that ends twice or never, a payload kept or dropped too long or too short, endless tombstones."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from transfer.channels.base import Payload
from transfer.errors import Busy, EncodeFailed
from transfer.leases import LeaseState, LeaseTable

MAX_LEASES = 4
MAX_BYTES = 100
ITEM_BYTES = {"small": 8, "large": 64, "larger": 80, "too large": 4000}
MAX_TOMBSTONES = 5
LEASE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def payload(num_bytes: int = 8) -> Payload:
    return Payload(memoryview(bytes(num_bytes)), 0, 1, num_bytes)


def table(clock: Clock) -> LeaseTable:
    return LeaseTable(clock=clock, max_leases=MAX_LEASES, max_tombstones=MAX_TOMBSTONES, max_bytes=MAX_BYTES)


class LeaseMachine(RuleBasedStateMachine):
    """A model that keeps (state, deadline, payload) and (item, holder) per live lease, and the ends in order."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = table(self.clock)
        self.shared = [payload(8), payload(32)]
        self.live: dict[str, tuple[LeaseState, float, Payload | None]] = {}
        self.promised: dict[str, tuple[str, str]] = {}
        self.ended: list[tuple[str, LeaseState]] = []
        self.num_ids = 0

    def end(self, transfer_id: str, state: LeaseState) -> None:
        del self.live[transfer_id], self.promised[transfer_id]
        self.ended = [*self.ended, (transfer_id, state)][-MAX_TOMBSTONES:]

    def has_room(self, item: str, holder: str) -> bool:
        if len(self.live) >= MAX_LEASES:
            return False
        items, holders = ({pair[index] for pair in self.promised.values()} for index in (0, 1))
        if not items or item in items or (holder and holder in holders):
            return True
        return sum(ITEM_BYTES[name] for name in items) + ITEM_BYTES[item] <= MAX_BYTES

    @rule(
        target=ids,
        lease_s=st.sampled_from([LEASE_S, 1.0]),
        item=st.sampled_from(sorted(ITEM_BYTES)),
        holder=st.sampled_from(["", "a", "b"]),
    )
    def announce(self, lease_s: float, item: str, holder: str) -> str:
        transfer_id = f"id-{self.num_ids}"
        self.num_ids += 1

        def begin() -> None:
            self.table.announce(transfer_id, item, ITEM_BYTES[item] // 4, 1, "float32", lease_s, holder=holder)

        if not self.has_room(item, holder):
            with pytest.raises(Busy):
                begin()
            return transfer_id
        begin()
        self.live[transfer_id] = (LeaseState.ANNOUNCED, self.clock.now + lease_s, None)
        self.promised[transfer_id] = (item, holder)
        with pytest.raises(ValueError, match="before"):
            begin()
        return transfer_id

    def settle(self, transfer_id: str, state: LeaseState, held: Payload | None) -> None:
        known = transfer_id in self.live or transfer_id in dict(self.ended)
        lease = self.table.get(transfer_id)

        def transition() -> bool:
            if held is not None:
                return self.table.fulfil(transfer_id, held)
            return self.table.fail(transfer_id, EncodeFailed("model failed"))

        if not known or (transfer_id in self.live and self.live[transfer_id][0] is not LeaseState.ANNOUNCED):
            with pytest.raises(ValueError, match="not announced"):
                transition()
            return
        assert transition() == (transfer_id in self.live)
        if lease is not None:
            self.live[transfer_id] = (state, self.clock.now + lease.lease_s, held)

    @rule(transfer_id=ids, which=st.integers(0, 1))
    def fulfil(self, transfer_id: str, which: int) -> None:
        self.settle(transfer_id, LeaseState.READY, self.shared[which])

    @rule(transfer_id=ids)
    def fail(self, transfer_id: str) -> None:
        self.settle(transfer_id, LeaseState.FAILED, None)

    @rule(transfer_id=ids)
    def release(self, transfer_id: str) -> None:
        assert self.table.release(transfer_id) == (transfer_id in self.live)
        if transfer_id in self.live:
            self.end(transfer_id, LeaseState.RELEASED)

    @rule(transfer_id=ids)
    def renew(self, transfer_id: str) -> None:
        lease = self.table.get(transfer_id)
        assert self.table.renew(transfer_id) == (transfer_id in self.live)
        if lease is not None:
            state, _, held = self.live[transfer_id]
            self.live[transfer_id] = (state, self.clock.now + lease.lease_s, held)

    @rule(transfer_id=consumes(ids))
    def release_twice(self, transfer_id: str) -> None:
        self.release(transfer_id)
        assert not self.table.release(transfer_id)

    @rule(seconds=st.sampled_from([0.5, 1.0, 9.0, 30.0]))
    def sweep_later(self, seconds: float) -> None:
        self.clock.now += seconds
        due = {transfer_id for transfer_id, lease in self.live.items() if lease[1] <= self.clock.now}
        expired = self.table.sweep()
        assert set(expired) == due and len(expired) == len(due)
        for transfer_id in expired:
            self.end(transfer_id, LeaseState.EXPIRED)
        if self.live:
            upcoming = self.table.next_deadline()
            assert upcoming is not None and upcoming <= min(deadline for _, deadline, _ in self.live.values())

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.table.check_integrity()
        assert self.table.num_leases == len(self.live)
        held = [item for _, _, item in self.live.values() if item is not None]
        assert self.table.num_ready == len(held)
        assert self.table.bytes_held == sum(item.num_bytes for item in self.shared if item in held)
        assert self.table.bytes_promised == sum(
            ITEM_BYTES[item] for item in {item for item, _ in self.promised.values()}
        )
        ends = dict(self.ended)
        for number in range(self.num_ids):
            transfer_id = f"id-{number}"
            expected = self.live[transfer_id][0] if transfer_id in self.live else ends.get(transfer_id)
            assert self.table.state_of(transfer_id) is expected


TestLeaseMachine = LeaseMachine.TestCase


def test_a_lease_starts_again_when_it_becomes_ready() -> None:
    clock = Clock()
    leases = table(clock)
    leases.announce("a", "key", 1, 2, "float32", LEASE_S)
    clock.now += LEASE_S - 1
    assert leases.fulfil("a", payload())
    clock.now += LEASE_S - 1
    assert leases.sweep() == []
    clock.now += 1
    assert leases.sweep() == ["a"]
    assert leases.state_of("a") is LeaseState.EXPIRED
    assert leases.bytes_held == 0


def test_a_payload_of_several_leases_is_held_until_the_last_ends() -> None:
    leases = table(Clock())
    shared = payload(64)
    for transfer_id in ("a", "b"):
        leases.announce(transfer_id, "key", 1, 2, "float32", LEASE_S)
        leases.fulfil(transfer_id, shared)
    assert (leases.num_ready, leases.bytes_held) == (2, 64)
    leases.release("a")
    assert (leases.num_ready, leases.bytes_held) == (1, 64)
    leases.release("b")
    assert (leases.num_ready, leases.bytes_held) == (0, 0)


def test_memory_is_held_once_however_many_payloads_are_made_of_it() -> None:
    leases = table(Clock())
    memory = memoryview(bytearray(64))
    for transfer_id, rows in (("a", memory), ("b", memory[:]), ("c", memory[32:])):
        leases.announce(transfer_id, "key", 1, 2, "float32", LEASE_S)
        leases.fulfil(transfer_id, Payload(rows, 0, 1, rows.nbytes))
    assert (leases.num_ready, leases.bytes_held) == (3, 64 + 32)
    leases.release("a")
    assert (leases.num_ready, leases.bytes_held) == (2, 64 + 32)
    leases.release("b")
    assert (leases.num_ready, leases.bytes_held) == (1, 32)
    leases.check_integrity()


def test_payloads_without_rows_hold_nothing() -> None:
    leases = table(Clock())
    for transfer_id in ("a", "b"):
        leases.announce(transfer_id, "key", 1, 2, "float32", LEASE_S)
        leases.fulfil(transfer_id, Payload(memoryview(b""), 0, 0, 8))
    assert (leases.num_ready, leases.bytes_held) == (2, 0)
    leases.clear()
    leases.check_integrity()


@pytest.mark.parametrize("is_ready", [False, True])
def test_renewals_leave_nothing_behind_and_count_all_the_same(is_ready: bool) -> None:
    clock = Clock()
    leases = table(clock)
    leases.announce("a", "key", 1, 2, "float32", LEASE_S, wait_s=3 * LEASE_S)
    if is_ready:
        leases.fulfil("a", payload())
    for _ in range(1000):
        clock.now += LEASE_S / 100
        assert leases.renew("a")
        assert leases.sweep() == []
        leases.check_integrity()  # bounds what is kept for each lease
    until = clock.now + LEASE_S
    while clock.now < until - 1:
        upcoming = leases.next_deadline()
        assert upcoming is not None and clock.now < upcoming <= until
        clock.now = upcoming
        assert (leases.sweep() == ["a"]) == (upcoming == until)
    assert leases.state_of("a") is LeaseState.EXPIRED


def test_clear_ends_everything() -> None:
    leases = table(Clock())
    for transfer_id in ("a", "b"):
        leases.announce(transfer_id, "key", 1, 2, "float32", LEASE_S)
    leases.fulfil("a", payload())
    leases.clear()
    leases.check_integrity()
    assert (leases.num_leases, leases.bytes_held, leases.num_released) == (0, 0, 2)


def test_waiting_for_the_embedding_has_a_time_of_its_own() -> None:
    clock = Clock()
    leases = LeaseTable(clock=clock)
    for transfer_id in ("never", "ready", "renewed"):
        leases.announce(transfer_id, "key", 1, 2, "float32", LEASE_S, wait_s=5 * LEASE_S)
    assert leases.renew("renewed")  # must not shorten it
    clock.now += 4 * LEASE_S
    assert leases.sweep() == []
    assert leases.fulfil("ready", payload())
    leases.check_integrity()
    clock.now += LEASE_S
    assert sorted(leases.sweep()) == ["never", "ready", "renewed"]
    leases.announce("short", "key", 1, 2, "float32", LEASE_S, wait_s=LEASE_S / 2)
    assert leases.renew("short")
    clock.now += LEASE_S / 2
    assert leases.sweep() == []
    clock.now += LEASE_S / 2
    assert leases.sweep() == ["short"]
    leases.check_integrity()


def test_new_holders_are_refused_at_the_limit_of_bytes_and_old_ones_are_not() -> None:
    leases = LeaseTable(clock=Clock(), max_bytes=100)
    leases.announce("a", "picture", 20, 1, "float32", LEASE_S, holder="first")
    with pytest.raises(Busy, match="80 bytes"):
        leases.announce("b", "other", 10, 1, "float32", LEASE_S, holder="second")
    leases.announce("c", "picture", 20, 1, "float32", LEASE_S, holder="second")  # shares what is there
    leases.announce("d", "third", 10, 1, "float32", LEASE_S, holder="first")
    assert leases.bytes_promised == 120
    for transfer_id in "acd":
        leases.release(transfer_id)
    leases.announce("e", "huge", 1000, 1, "float32", LEASE_S, holder="second")  # alone
    leases.check_integrity()
