"""Guards: memory of embeddings that are gone, kept beyond what may be; memory given to two at once."""

import threading
import weakref
from collections.abc import Callable

import pytest

from transfer.buffer_pool import BufferPool
from transfer.tensors import empty_buffer

MIB = 2**20


@pytest.fixture
def num_live_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes of all the memory that pools have made and that still exists."""
    made: list[tuple[weakref.ref[memoryview], int]] = []

    def make(num_bytes: int) -> memoryview:
        memory = empty_buffer(num_bytes)
        made.append((weakref.ref(memory), num_bytes))
        return memory

    monkeypatch.setattr("transfer.buffer_pool.empty_buffer", make)
    return lambda: sum(num_bytes for memory, num_bytes in made if memory() is not None)


@pytest.mark.parametrize("idle_bytes", [0, 2 * MIB, 100 * MIB])
def test_no_more_than_allowed_is_kept_the_moment_it_is_dropped(
    num_live_bytes: Callable[[], int], idle_bytes: int
) -> None:
    pool = BufferPool(idle_bytes)
    used = [pool.allocate(MIB) for _ in range(4)]
    assert num_live_bytes() == 4 * MIB
    del used
    assert num_live_bytes() == min(idle_bytes, 4 * MIB) == pool.num_idle_bytes


def test_dropped_memory_is_used_again_by_the_next_of_its_size(num_live_bytes: Callable[[], int]) -> None:
    pool = BufferPool(8 * MIB)
    for num_bytes in (MIB, MIB - 5, MIB, 2 * MIB):
        memory = pool.allocate(num_bytes)
        assert (memory.nbytes, memory.readonly) == (num_bytes, False)
        view = memory[10:20]
        del memory
        assert pool.num_idle_bytes == (MIB if num_bytes == 2 * MIB else 0)
        del view
    assert num_live_bytes() == pool.num_idle_bytes == 3 * MIB


def test_threads_share_a_pool_and_leave_it_within_bounds(num_live_bytes: Callable[[], int]) -> None:
    pool = BufferPool(3 * MIB)

    def use(number: int) -> None:
        for _ in range(300):
            memory = pool.allocate(MIB)
            memory[:8] = number.to_bytes(8, "big")
            other = pool.allocate(MIB)
            other[:8] = bytes(8)
            assert bytes(memory[:8]) == number.to_bytes(8, "big")

    threads = [threading.Thread(target=use, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert num_live_bytes() == pool.num_idle_bytes <= 3 * MIB
