"""A group whose ranks are threads of one process: the exchange of the real one, without starting processes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
WAIT_S = 60.0


class ThreadGroup:
    """One rank. Values go through a table of parcels, [from][to], that all ranks share."""

    def __init__(self, rank: int, parcels: list[list[torch.Tensor]], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.size = len(parcels)
        self.num_exchanges = 0
        self._parcels = parcels
        self._barrier = barrier

    def all_to_all(self, sent: torch.Tensor, sent_sizes: list[int], received_sizes: list[int]) -> torch.Tensor:
        self.num_exchanges += 1
        self._parcels[self.rank] = list(sent.split(sent_sizes))
        self._barrier.wait(WAIT_S)
        received = [self._parcels[rank][self.rank] for rank in range(self.size)]
        assert [len(part) for part in received] == received_sizes
        joined = torch.cat(received)
        self._barrier.wait(WAIT_S)
        return joined


def on_ranks(num_ranks: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    """What `work` gives on each rank; a rank that fails fails the others."""
    parcels: list[list[torch.Tensor]] = [[] for _ in range(num_ranks)]
    barrier = threading.Barrier(num_ranks)

    def guarded(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, parcels, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(guarded, range(num_ranks)))
