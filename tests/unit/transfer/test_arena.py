"""Guards: two embeddings in one block, memory that never becomes free again, an arena left behind by a dead process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.channels.arena import HEADER_BYTES, PREFIX, Arena, block_header, sweep_dead_arenas
from transfer.owned_files import SHARED_MEMORY

PAGE = 4096
NUM_BYTES = 16 * PAGE


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(NUM_BYTES)
    yield made
    made.close()
    assert not (SHARED_MEMORY / made.name).exists()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 6 * PAGE), st.integers(-8, -1)), max_size=60))
def test_blocks_never_overlap_and_all_come_back(steps: list[int]) -> None:
    arena = Arena(NUM_BYTES)
    try:
        live: list[tuple[memoryview, bytes]] = []
        for number, step in enumerate(steps):
            if step < 0:
                if live:
                    live.pop(step % len(live))
            else:
                content = os.urandom(step)
                stored = arena.store(f"id{number}", memoryview(content))
                if stored is not None:
                    live.append((stored[0], content))
                    assert stored[1] % PAGE == HEADER_BYTES
                else:
                    assert arena.num_free_bytes < NUM_BYTES
            assert all(bytes(memory) == content for memory, content in live)
        live.clear()
        stored = None
        assert arena.num_free_bytes == NUM_BYTES
        assert arena.store("all", memoryview(bytes(NUM_BYTES - HEADER_BYTES))) is not None
    finally:
        arena.close()


def test_the_header_goes_with_the_last_reference(arena: Arena) -> None:
    stored = arena.store("abc", memoryview(b"payload"))
    assert stored is not None
    memory, offset = stored
    file = (SHARED_MEMORY / arena.name).read_bytes()
    assert file[offset - HEADER_BYTES : offset] == block_header("abc")
    assert file[offset : offset + 7] == b"payload"
    part = memory[2:4]
    del stored, memory
    assert arena.num_free_bytes == NUM_BYTES - PAGE
    del part
    assert arena.num_free_bytes == NUM_BYTES
    assert (SHARED_MEMORY / arena.name).read_bytes()[offset - HEADER_BYTES : offset] == bytes(HEADER_BYTES)


def test_a_full_arena_says_so(arena: Arena) -> None:
    kept = [arena.store(str(number), memoryview(bytes(4 * PAGE - HEADER_BYTES))) for number in range(4)]
    assert None not in kept
    assert arena.store("one more", memoryview(b"x")) is None
    kept.pop(1)
    assert arena.store("one more", memoryview(b"x")) is not None


def test_memory_outlives_close(arena: Arena) -> None:
    stored = arena.store("abc", memoryview(b"payload"))
    assert stored is not None
    arena.close()
    arena.close()
    assert bytes(stored[0]) == b"payload"
    assert arena.store("later", memoryview(b"x")) is None


def test_an_arena_larger_than_the_file_system_is_refused_and_leaves_nothing() -> None:
    before = set(SHARED_MEMORY.glob(f"{PREFIX}*"))
    with pytest.raises(OSError):
        Arena(1 << 60)
    assert not set(SHARED_MEMORY.glob(f"{PREFIX}{os.getpid()}-*")) - before


def test_only_arenas_of_dead_owners_are_swept(arena: Arena) -> None:
    script = (
        "import os, sys; from transfer.channels.arena import Arena; made = Arena(65536);"
        "sys.stdout.write(made.name); sys.stdout.flush(); os._exit(1)"
    )
    command = [sys.executable, "-c", script]
    name = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    assert name.startswith(PREFIX)
    sweep_dead_arenas()
    assert not (SHARED_MEMORY / name).exists()
    assert (SHARED_MEMORY / arena.name).exists()
