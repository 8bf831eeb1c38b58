"""Guards: a waiting fetch that is answered twice, never, or late, and a lot that grows without bound."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transfer.messages import FetchRequest
from transfer.parking import Parked, ParkingLot

MAX_PARKED = 6
TRANSFERS = st.sampled_from(["a", "b", "c"])


def parked(transfer_id: str, fetch_id: int, deadline: float) -> Parked:
    return Parked(b"peer", FetchRequest(fetch_id, transfer_id, "key", "print", "host", ("zmq",), 1.0), deadline)


class ParkingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lot = ParkingLot(MAX_PARKED)
        self.waiting: list[Parked] = []
        self.now = 0.0
        self.num_fetches = 0

    @rule(transfer_id=TRANSFERS, wait_s=st.integers(1, 9))
    def park(self, transfer_id: str, wait_s: int) -> None:
        self.num_fetches += 1
        fetch = parked(transfer_id, self.num_fetches, self.now + wait_s)
        accepted = self.lot.park(fetch)
        assert accepted == (len(self.waiting) < MAX_PARKED)
        if accepted:
            self.waiting.append(fetch)

    @rule(transfer_id=TRANSFERS)
    def take(self, transfer_id: str) -> None:
        expected = [fetch for fetch in self.waiting if fetch.request.transfer_id == transfer_id]
        assert self.lot.take(transfer_id) == expected
        self.waiting = [fetch for fetch in self.waiting if fetch not in expected]

    @rule(wait_s=st.integers(0, 5))
    def take_overdue(self, wait_s: int) -> None:
        self.now += wait_s
        expected = [fetch for fetch in self.waiting if fetch.deadline <= self.now]
        overdue = self.lot.take_overdue(self.now)
        assert sorted(fetch.request.fetch_id for fetch in overdue) == [fetch.request.fetch_id for fetch in expected]
        self.waiting = [fetch for fetch in self.waiting if fetch not in expected]

    @rule()
    def take_all(self) -> None:
        taken = self.lot.take_all()
        assert sorted(fetch.request.fetch_id for fetch in taken) == [fetch.request.fetch_id for fetch in self.waiting]
        self.waiting = []

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.lot.num_parked == len(self.waiting)
        if self.waiting:
            upcoming = self.lot.next_deadline()
            assert upcoming is not None and upcoming <= min(fetch.deadline for fetch in self.waiting)


TestParkingMachine = ParkingMachine.TestCase
